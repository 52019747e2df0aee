"""The places where the residual stream is read, and their names in other libraries.

A model with ``L`` transformer blocks has ``L + 1`` sites: site ``l < L`` is layer ``l``, the residual stream after
block ``l`` and before the final norm; site ``L`` is the same stream after the final norm.
"""

from __future__ import annotations

import math

import numpy as np


def _check(site: int, n_layers: int) -> None:
    if not 0 <= site <= n_layers:
        raise ValueError(f"site must be 0 to {n_layers} for a model of {n_layers} layers, got {site}")


def site_label(site: int, n_layers: int) -> str:
    """Return the name on screen: ``layer 18 of 28``, or ``final norm`` for the last site."""
    _check(site, n_layers)
    return "final norm" if site == n_layers else f"layer {site} of {n_layers}"


def site_short(site: int, n_layers: int) -> str:
    """Return the name on an axis: ``18``, or ``norm`` for the last site."""
    _check(site, n_layers)
    return "norm" if site == n_layers else str(site)


def best_layer(crossfit_d: np.ndarray) -> int:
    """Return the layer with the highest cross-fitted d: the first of several, and layer 0 where none is known.

    The final norm is no candidate, since nothing can be edited there.

    Args:
        crossfit_d: ``(site,)``.
    """
    of_layers = crossfit_d[:-1]
    return int(np.nanargmax(of_layers)) if np.isfinite(of_layers).any() else 0


def hidden_state_index(site: int, n_layers: int) -> int:
    """Return the index of the site in Hugging Face ``output_hidden_states``.

    Raises:
        ValueError: for the last layer, which Hugging Face returns only after the final norm.
    """
    _check(site, n_layers)
    if site == n_layers - 1:
        raise ValueError(
            f"hidden_states has no entry for {site_label(site, n_layers)}: its last entry is taken after the final "
            f"norm; read block {site}'s output with a forward hook instead"
        )
    return n_layers if site == n_layers else site + 1


def site_from_hidden_state(index: int, n_layers: int) -> int:
    """Return the site that Hugging Face's ``hidden_states[index]`` holds.

    Raises:
        ValueError: for index 0, the embeddings, which no site of ours is.
    """
    if not 1 <= index <= n_layers:
        raise ValueError(f"index must be 1 to {n_layers}, got {index}: index 0 is the embeddings, which are no site")
    return n_layers if index == n_layers else index - 1


def transformer_lens_name(site: int, n_layers: int) -> str:
    """Return the site's hook point in TransformerLens 4.

    Its ``ln_final.hook_normalized`` lacks the learned scale.
    """
    _check(site, n_layers)
    return "ln_final.hook_out" if site == n_layers else f"blocks.{site}.hook_resid_post"


def relative_depth(site: int, n_layers: int) -> float:
    """Return a layer's depth from 0, the first, to 1, the last; NaN for the final norm, which is no layer."""
    _check(site, n_layers)
    return math.nan if site == n_layers else site / max(n_layers - 1, 1)


def matched_site(site: int, n_layers: int, other_layers: int) -> int:
    """Return the site of another model nearest in relative depth; the final norm for the final norm."""
    depth = relative_depth(site, n_layers)
    return other_layers if math.isnan(depth) else math.floor(depth * (other_layers - 1) + 0.5)

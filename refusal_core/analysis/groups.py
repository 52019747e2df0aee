"""Groups of prompts that stay together: matched pairs, and prompts that are in no pair.

Whole groups are dealt into folds, sampled, redrawn and permuted, so twins are never on both sides of a comparison.
"""

from __future__ import annotations

import numpy as np

ALL_PROMPTS = slice(None)
"""The positions of all prompts, where draws are not of a sample."""

MOST_REDRAWN = 1024
"""Most prompts of a set that are redrawn, permuted or compared each with each; of more, a sample is."""


def assign_folds(
    is_harmful: np.ndarray, groups: np.ndarray, folds: int, repeats: int, rng: np.random.Generator
) -> np.ndarray:
    """Deal whole groups into folds so that every fold has its share of either label.

    Groups that hold both labels (matched pairs) are dealt first, then the others label by label from where the pairs
    ended, so each label is spread evenly. There are never more folds than groups of the rarer label.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what has to stay together, a pair or a prompt by itself.
        folds: wanted number of folds.
        repeats: how often the groups are dealt anew.
        rng: deals the groups.

    Returns:
        ``(repeat, prompt)`` fold of every prompt, ``0 … folds-1``; no rows when a label has fewer than two groups.
    """
    group_of, has_harmful, has_harmless = _labels_of_groups(is_harmful, groups)
    folds = int(min(folds, has_harmful.sum(), has_harmless.sum()))
    if folds < 2:
        return np.empty((0, len(is_harmful)), dtype=int)
    mixed = np.flatnonzero(has_harmful & has_harmless)
    fold_of_group = np.empty((repeats, len(has_harmful)), dtype=int)
    for repeat in range(repeats):
        fold_of_group[repeat, rng.permutation(mixed)] = np.arange(len(mixed)) % folds
        for alone in (np.flatnonzero(~has_harmless), np.flatnonzero(~has_harmful)):
            fold_of_group[repeat, rng.permutation(alone)] = (len(mixed) + np.arange(len(alone))) % folds
    return fold_of_group[:, group_of]


def fewest_groups(is_harmful: np.ndarray, groups: np.ndarray) -> int:
    """Return how many groups have prompts of the label of which the fewest have.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` the matched pair, or the prompt by itself.
    """
    _, has_harmful, has_harmless = _labels_of_groups(is_harmful, groups)
    return int(min(has_harmful.sum(), has_harmless.sum()))


def find_twins(is_harmful: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the matched pairs: every group that holds exactly one prompt of each label.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` the group of every prompt.

    Returns:
        ``(pair, 2)`` positions of the harmful and the harmless prompt.
    """
    _, group_of, size = np.unique(groups, return_inverse=True, return_counts=True)
    in_twos = size[group_of] == 2
    harmful, harmless = np.flatnonzero(is_harmful & in_twos), np.flatnonzero(~is_harmful & in_twos)
    _, places, other_places = np.intersect1d(
        group_of[harmful], group_of[harmless], assume_unique=False, return_indices=True
    )
    twins = np.column_stack([harmful[places], harmless[other_places]])
    return twins[np.argsort(twins[:, 0], kind="stable")]


def sample_groups(
    is_harmful: np.ndarray, groups: np.ndarray, most: int, rng: np.random.Generator
) -> np.ndarray | slice:
    """Choose about ``most`` prompts of a larger set: whole groups, every kind of them in its share.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what stays together: the matched pair, or the prompt by itself.
        most: prompts of a set that is not sampled.
        rng: chooses the groups.

    Returns:
        ``(sampled,)`` int positions in order, or :data:`ALL_PROMPTS` when there are no more than ``most``.
    """
    if len(is_harmful) <= most:
        return ALL_PROMPTS
    group_of, has_harmful, has_harmless = _labels_of_groups(is_harmful, groups)
    chosen = np.zeros(len(has_harmful), dtype=bool)
    for kind in (has_harmful & has_harmless, ~has_harmless, ~has_harmful):
        size = int(kind.sum())
        wanted = min(size, max(2, size * most // len(is_harmful)))
        chosen[rng.permutation(np.flatnonzero(kind))[:wanted]] = True
    return np.flatnonzero(chosen[group_of])


def bootstrap_counts(is_harmful: np.ndarray, groups: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw whole groups with replacement and count how often every prompt is drawn (Efron 1979).

    Pairs are drawn as pairs, the others within their label, so every draw has both labels.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` what is drawn as one: the matched pair, or the prompt by itself.
        draws: how many.
        rng: draws the groups.

    Returns:
        ``(draw, prompt)`` float64 multiplicities.
    """
    group_of, has_harmful, has_harmless = _labels_of_groups(is_harmful, groups)
    counts = np.zeros((draws, len(has_harmful)))
    for kind in (has_harmful & has_harmless, ~has_harmless, ~has_harmful):
        size = int(kind.sum())
        if size:
            counts[:, kind] = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    return counts[:, group_of]


def redraw_prompts(prompts: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw single prompts with replacement and count how often each is drawn (Efron 1979).

    Args:
        prompts: how many there are.
        draws: how many.
        rng: draws the prompts.

    Returns:
        ``(draw, prompt)`` float64 multiplicities.
    """
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws).astype(np.float64)


def permute_labels(
    is_harmful: np.ndarray,
    groups: np.ndarray,
    draws: int,
    rng: np.random.Generator,
    twins: np.ndarray | None = None,
) -> np.ndarray:
    """Return orders of the prompts that are equally likely when the label means nothing.

    Within a matched pair the labels are flipped or not, in a group of several pairs those of all of them together: what
    its wordings share cancels out under the true labels, and has to under the others. Groups of one label are exchanged
    whole with others of their size (restricted permutations, Anderson & ter Braak 2003). Of few pairs all flips are
    returned, once each: of so few a random choice, the same in every run, would be more or less favourable to the true
    labels.

    Args:
        is_harmful: ``(prompt,)`` bool.
        groups: ``(prompt,)`` the quartet, the matched pair, or the prompt by itself.
        draws: how many at most.
        rng: flips the pairs and exchanges the others.
        twins: ``(pair, 2)`` positions of the matched pairs, where groups hold several.

    Returns:
        ``(draw, prompt)`` int, without the true order where all others are returned: ``is_harmful[order]`` are the
        permuted labels, and ``fold[order]`` are folds that are as well stratified by them as ``fold`` is by the true
        ones.
    """
    _, group_of = np.unique(groups, return_inverse=True)
    pairs = find_twins(is_harmful, groups)
    if 2 * len(pairs) == len(is_harmful) and 2 ** len(pairs) <= draws + 1:
        return _all_flips(pairs)
    order = np.tile(np.arange(len(is_harmful)), (draws, 1))
    alone: dict[int, list[np.ndarray]] = {}
    other = np.arange(len(is_harmful))
    if twins is not None:
        other[twins[:, 0]], other[twins[:, 1]] = twins[:, 1], twins[:, 0]
    for members in np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1]):
        if len(members) > 2 and (other[members] != members).all():
            order[:, members] = np.where(rng.random((draws, 1)) < 0.5, other[members], members)
        elif 0 < is_harmful[members].sum() < len(members):
            order[:, members] = rng.permuted(order[:, members], axis=1)
        else:
            alone.setdefault(len(members), []).append(members)
    for exchangeable in alone.values():
        block = np.array(exchangeable)
        shuffled = rng.permuted(np.tile(np.arange(len(block)), (draws, 1)), axis=1)
        order[:, block] = block[shuffled]
    return order


def _all_flips(pairs: np.ndarray) -> np.ndarray:
    """Return ``(2 ** pair - 1, prompt)`` orders in which any of the pairs are flipped."""
    flipped = np.arange(1, 2 ** len(pairs))[:, None] >> np.arange(len(pairs)) & 1 == 1
    order = np.tile(np.arange(2 * len(pairs)), (len(flipped), 1))
    for place, (harmful, harmless) in enumerate(pairs):
        order[flipped[:, place], harmful], order[flipped[:, place], harmless] = harmless, harmful
    return order


def _labels_of_groups(is_harmful: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``(prompt,)`` the group of every prompt as a number, and ``(group,)`` whether it holds either label."""
    _, group_of = np.unique(groups, return_inverse=True)
    has_harmful = np.bincount(group_of, weights=is_harmful) > 0
    has_harmless = np.bincount(group_of, weights=~is_harmful) > 0
    return group_of, has_harmful, has_harmless

from __future__ import annotations

import math

import pytest

from refusal_core import sites


def test_names():
    assert sites.site_label(18, 28) == "layer 18 of 28"
    assert sites.site_label(28, 28) == "final norm"
    assert sites.site_short(28, 28) == "norm"
    assert sites.transformer_lens_name(18, 28) == "blocks.18.hook_resid_post"
    assert sites.transformer_lens_name(28, 28) == "ln_final.hook_out"


def test_hidden_state_indices_and_back():
    for site in [*range(27), 28]:
        assert sites.site_from_hidden_state(sites.hidden_state_index(site, 28), 28) == site
    assert sites.hidden_state_index(18, 28) == 19
    assert sites.hidden_state_index(28, 28) == 28


def test_the_last_layer_has_no_hidden_state():
    with pytest.raises(ValueError, match="layer 27 of 28"):
        sites.hidden_state_index(27, 28)


@pytest.mark.parametrize("site", [-1, 29])
def test_sites_outside_the_model_are_refused(site):
    with pytest.raises(ValueError, match="0 to 28"):
        sites.site_label(site, 28)


def test_layers_of_different_models_are_matched_by_relative_depth():
    assert [sites.relative_depth(site, 5) for site in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert math.isnan(sites.relative_depth(5, 5))
    assert [sites.matched_site(site, 28, 28) for site in range(29)] == list(range(29))
    assert [sites.matched_site(site, 3, 5) for site in range(4)] == [0, 2, 4, 5]
    assert sites.matched_site(13, 28, 24) == round(13 / 27 * 23)
    assert sites.relative_depth(0, 1) == 0

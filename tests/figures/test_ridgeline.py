from __future__ import annotations

import numpy as np

from refusal_core.figures.ridgeline import BINS, ridges


def test_a_ridge_stands_over_its_label_s_prompts_and_the_highest_of_a_site_is_100(run):
    drawn = ridges(run)
    for site in range(run.n_sites):
        heights = {label: np.array(drawn[label][site]) for label in ("harmful", "harmless")}
        assert max(values.max() for values in heights.values()) == 100
        assert all(values.shape == (BINS,) and values.min() >= 0 for values in heights.values())
        centre = {label: np.average(np.arange(BINS), weights=values) for label, values in heights.items()}
        apart = run.layer_stats["in_sample_d"][site]
        if abs(apart) > 0.3:
            assert (centre["harmful"] > centre["harmless"]) == (apart > 0)

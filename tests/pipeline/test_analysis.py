"""What follows from activations and labels: each number against a plain computation, and cross-fitting only once."""

from __future__ import annotations

import numpy as np
from planted import planted_run

from refusal_core.analysis import crossfit
from refusal_core.analysis.gram import gram_matrix
from refusal_core.evidence import design
from refusal_core.options import FOLDS, REPEATS
from refusal_core.pipeline.analysis import analyse
from refusal_core.prompts.sets import prompt_groups


def test_cross_fitted_projections_are_those_of_plain_cross_fitting():
    hidden, prompts = planted_run(0, [0, 2], n=40, n_probes=20)
    analysis = analyse(hidden, prompts, seed=3)
    fitted = prompts["fitted"].to_numpy()
    is_harmful = prompts["label"].eq("harmful").to_numpy()[fitted]
    for site in range(hidden.shape[1]):
        gram = gram_matrix(hidden[:, site], fitted)
        plain = crossfit.crossfit(gram, is_harmful, prompt_groups(prompts[fitted]), FOLDS, REPEATS, 3)
        np.testing.assert_allclose(analysis.projections_crossfit[fitted, site], plain.projection, atol=1e-9)
        np.testing.assert_allclose(analysis.layer_stats["crossfit_d"][site], plain.d, rtol=1e-9)
    assert np.isnan(analysis.projections_crossfit[~fitted]).all()


def test_every_site_is_cross_fitted_once(monkeypatch):
    hidden, prompts = planted_run(0, [0, 2], n=40, n_probes=20)
    labels = prompts.loc[prompts["fitted"], "label"].eq("harmful").to_numpy()
    seen = []

    def counted(gram, is_harmful, *rest):
        # The direction of refusing is fitted on other labels.
        seen.append(np.array_equal(is_harmful, labels))
        return crossfit.crossfit(gram, is_harmful, *rest)

    monkeypatch.setattr(design, "crossfit", counted)
    analyse(hidden, prompts)
    assert seen.count(True) == hidden.shape[1]

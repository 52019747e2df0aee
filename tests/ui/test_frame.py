"""Which run the pages show to someone who chose none."""

from __future__ import annotations

from synthetic import SHIPPED_CACHE

from refusal_core.runs.store import list_runs
from refusal_core.ui.frame import default_run


def test_a_first_visit_shows_the_shipped_run_whose_pages_all_have_something_to_show():
    runs, _ = list_runs(SHIPPED_CACHE)
    (shown,) = [run for run in runs if run.run_id == default_run(runs)]
    assert set(shown.measured) == {"behaviour", "intervention", "subspace"}
    assert shown.contrast_set == "pairs"
    # Of models with as much, the larger one, which more layers do not make.
    assert shown.n_layers < max(run.n_layers for run in runs)
    assert shown.d_model == max(run.d_model for run in runs)

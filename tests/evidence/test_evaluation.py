from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import WIDTH, evaluate_run, harmful_rows, planted_run, prompt_table

from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.text_models import EMBEDDINGS, TEXT_MODELS, WORDS
from refusal_core.errors import RunError
from refusal_core.evidence.answers import QUESTIONS, answer
from refusal_core.evidence.evaluation import evaluate
from refusal_core.evidence.findings import verdict
from refusal_core.evidence.phrases import NO_DIFFERENCE
from refusal_core.runs.evidence_tables import BOTH, CONTRAST, Evidence


@pytest.fixture(scope="module")
def planted() -> Evidence:
    """Harm from site 3 of 6 on, log-odds of refusal that follow it within the labels too."""
    hidden, prompts = planted_run(0, [0, 0, 0, 4, 4, 4])
    prompts["refusal_log_odds"] = hidden[:, 4, 0] - 7.0
    return evaluate_run(hidden, prompts)


def test_style_without_harm_holds_but_is_not_about_harm():
    rng = np.random.default_rng(9)
    prompts = prompt_table(120, 48, paired=False)
    is_harmful, fitted = harmful_rows(prompts), prompts["fitted"].to_numpy()
    prompts["n_tokens"] = np.where(fitted & is_harmful, 45, 35) + rng.integers(-4, 5, len(prompts))
    hidden = rng.normal(size=(len(prompts), 3, WIDTH))
    hidden[:, :, :5] += (prompts["n_tokens"].to_numpy()[:, None, None] - 40) * 0.4
    evidence = evaluate_run(hidden.astype(np.float32), prompts)
    for site in range(3):
        row = evidence.sites.loc[site]
        assert row["in_sample_d"] > 2
        assert row["crossfit_d_low"] > 2
        assert row["permutation_p_corrected"] < 0.01
        assert row["length_d_low"] < 0 < row["length_d_high"]
        assert NO_DIFFERENCE in answer(evidence, "simpler", site)
        assert "holds on new prompts" in answer(evidence, "hold", site)
        harm = answer(evidence, "harm", site)
        assert NO_DIFFERENCE in harm
        assert "may be how the two sets were written" in harm
        assert f"would have been found at {('layer 0 of 2', 'layer 1 of 2', 'the final norm')[site]}" in harm
    assert (evidence.transfer["d_low"] < 0).all()
    assert (evidence.transfer["d"].abs() < 0.6).all()
    first = evidence.detectable_from.set_index(["measure", "source"])["site"]
    assert first["crossfit_d", CONTRAST] == 0
    assert pd.isna(first["d", "probe-pairs"])
    baselines = evidence.baselines.set_index(["baseline", "source"])
    assert baselines.loc[("tokens", CONTRAST), "d"] > 2
    assert abs(baselines.loc[("tokens", "probe-pairs"), "d"]) < 0.6
    assert NO_DIFFERENCE in verdict(evidence)


def test_a_set_on_which_the_direction_points_the_other_way_is_named():
    hidden, prompts = planted_run(5, [0, 4, 4])
    opposed = prompts[~prompts["fitted"]].assign(source="borderline", pair_id=None)
    opposed["prompt_id"] = [f"b{k:011x}" for k in range(len(opposed))]
    turned = hidden[~prompts["fitted"]].copy()
    turned[:, 1:, 0] *= -1
    both = pd.concat([prompts, opposed], ignore_index=True)
    evidence = evaluate_run(np.concatenate([hidden, turned]), both)
    for said in (answer(evidence, "harm", 1), verdict(evidence)):
        assert "On borderline it points the other way" in said
    assert "borderline" not in verdict(evaluate_run(hidden, prompts))


def test_the_verdict_says_from_where_on_the_direction_beats_the_wording(planted):
    text = planted.baselines[planted.baselines["baseline"].isin(TEXT_MODELS)].groupby("source")["auroc"].max()
    assert (
        "It does better than the prompts' wording on held-out contrast prompts from layer 3 of 5 on "
        f"(text reaches AUROC {text[CONTRAST]:.2f}), on probe-pairs from layer 3 of 5 on "
        f"(text reaches AUROC {text['probe-pairs']:.2f})."
    ) in verdict(planted)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_planted_harm_is_found_where_it_is(planted):
    sites = planted.sites.set_index("site")
    assert (sites.loc[:2, "crossfit_d_low"] < 0).all()
    assert (sites.loc[3:, "crossfit_d_low"] > 1).all()
    assert (sites.loc[3:, "permutation_p_corrected"] <= 0.01).all()
    assert (sites.loc[:2, "permutation_p_corrected"] > 0.05).all()
    assert (sites["in_sample_d"] > sites["crossfit_d"]).all()
    first = planted.detectable_from.set_index(["measure", "source"])
    for row in (first.loc[("d", "probe-pairs")], first.loc[("crossfit_d", CONTRAST)]):
        assert (row["site"], row["site_low"], row["site_high"]) == (3, 3, 3)
    assert "layer 3 of 5 on (95 % interval 3 to 3)" in verdict(planted)
    assert "about harm, as far as" in answer(planted, "harm", 4)
    assert NO_DIFFERENCE in answer(planted, "harm", 1)
    assert NO_DIFFERENCE in answer(planted, "hold", 1)
    assert NO_DIFFERENCE in answer(planted, "chance", 1)
    for site in (1, 4):
        assert f"in-sample d = {sites.loc[site, 'in_sample_d']:.2f}" in answer(planted, "chance", site)
    rho = planted.refusal.set_index(["site", "source", "label"])
    for label in ("harmful", "harmless", BOTH):
        assert rho.loc[(4, CONTRAST, label), "rho_low"] > 0.5
    assert abs(rho.loc[(4, CONTRAST, BOTH), "rho"]) > abs(rho.loc[(1, CONTRAST, BOTH), "rho"])
    assert sites.loc[4, "behaviour_cosine_low"] > 0.9
    assert planted.geometry.drop(columns="site").shape[1] > 5
    assert np.isfinite(planted.geometry.to_numpy(float)).all()
    curve = planted.learning[planted.learning["site"].eq(4)]
    assert curve["size"].tolist()[:3] == [8, 16, 32]
    assert curve["cosine"].is_monotonic_increasing
    full = planted.learning[planted.learning["site"].eq(4)].iloc[-1]
    assert full["d"] == pytest.approx(sites.loc[4, "crossfit_d"], rel=0.05)
    assert planted.cosines["cosine"].between(-1 - 1e-6, 1 + 1e-6).all()
    assert set(planted.reasons["number"]) == {EMBEDDINGS, "category_d", "category_auroc"}


def test_every_site_draws_random_directions_of_its_own():
    hidden, prompts = planted_run(0, [4, 4])
    hidden[:, 1] = hidden[:, 0]
    evidence = evaluate_run(hidden, prompts)
    assert evidence.sites["in_sample_d"].nunique() == 1
    drawn = evidence.random_directions[evidence.random_directions["kind"].isin(["isotropic", "covariance"])]
    first, second = (rows["d_max"].to_numpy() for _, rows in drawn.groupby("site"))
    assert len(first) == 2
    assert (first != second).all()


def test_intervals_hold_their_estimates_and_the_same_seed_gives_the_same(planted):
    for table in (planted.sites, planted.transfer, planted.wording, planted.refusal, planted.baselines):
        for name in [column.removesuffix("_low") for column in table.columns if column.endswith("_low")]:
            known = table.dropna(subset=name) if name in table else table.iloc[:0].assign(**{name: 0.0})
            assert known[name].between(known[f"{name}_low"] - 1e-9, known[f"{name}_high"] + 1e-9).all(), name
    hidden, prompts = planted_run(0, [0, 0, 0, 4, 4, 4])
    prompts["refusal_log_odds"] = hidden[:, 4, 0] - 7.0
    again, other = evaluate_run(hidden, prompts), evaluate_run(hidden, prompts, seed=1)
    for name, table in planted.to_tables().items():
        pd.testing.assert_frame_equal(table, again.to_tables()[name])
    assert (planted.sites["crossfit_d_low"] != other.sites["crossfit_d_low"]).any()


def test_evidence_survives_parquet(planted, tmp_path):
    for name, table in planted.to_tables().items():
        table.to_parquet(tmp_path / f"{name}.parquet", index=False)
    tables = {path.stem: pd.read_parquet(path) for path in tmp_path.iterdir()}
    restored = Evidence.from_tables(tables)
    assert verdict(restored) == verdict(planted)
    for question in QUESTIONS:
        assert answer(restored, question, 4) == answer(planted, question, 4)
    del tables["learning"]
    with pytest.raises(RunError, match="learning"):
        Evidence.from_tables(tables)


@pytest.mark.slow
def test_a_full_size_run_takes_under_a_minute_and_2_gigabytes():
    measured = subprocess.run([sys.executable, "-c", _FULL_SIZE], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, measured.stdout.split())
    print(f"evidence for 512 + 144 prompts, 29 sites, 1536 dimensions: {seconds:.1f} s, {gigabytes:.2f} GB")
    assert seconds < 60
    assert gigabytes < 2


_FULL_SIZE = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import numpy as np
from planted import harmful_rows, prompt_table
from refusal_core.analysis.directions import fit_directions
from refusal_core.analysis.text_models import EMBEDDINGS, TEXT_MODELS, WORDS
from refusal_core.evidence.evaluation import evaluate
prompts = prompt_table(512, 144, paired=True)
hidden = np.random.default_rng(0).standard_normal((656, 29, 1536), dtype=np.float32)
directions = fit_directions(hidden[:512], harmful_rows(prompts)[:512])
begun = time.perf_counter()
evaluate(hidden, prompts, directions)
seconds = time.perf_counter() - begun
# Not getrusage's, which begins with that of the process that started this one.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak) * 1024 / 1e9)
"""


# --- data without an answer ------------------------------------------------------------------------------------------


def degenerate(change) -> Evidence:
    hidden, prompts = planted_run(3, [0, 2, 2], n=32, n_probes=16)
    hidden, prompts = change(hidden, prompts)
    evidence = evaluate_run(hidden, prompts, permutations=50, draws=50, random_directions=20)
    for table in evidence.to_tables().values():
        assert not np.isinf(table.select_dtypes("number").to_numpy(dtype=float, na_value=np.nan)).any()
    for question in QUESTIONS:
        for site in range(3):
            assert answer(evidence, question, site).endswith(".")
    assert verdict(evidence).endswith(".")
    return evidence


def constant_site(hidden, prompts):
    hidden[:, 0] = 0.3
    return hidden, prompts


def no_pairs(hidden, prompts):
    return hidden, prompts.assign(pair_id=None)


def sixteen_prompts(hidden, prompts):
    kept = np.r_[0:16, 32:48]
    return hidden[kept], prompts.iloc[kept].reset_index(drop=True)


def four_prompts(hidden, prompts):
    kept = np.r_[0:4, 32:48]
    return hidden[kept], prompts.iloc[kept].reset_index(drop=True)


def unbalanced(hidden, prompts):
    kept = np.r_[0:4, np.arange(5, 32, 2), 32:48]
    return hidden[kept], prompts.iloc[kept].reset_index(drop=True)


def no_transfer(hidden, prompts):
    kept = prompts["fitted"].to_numpy()
    return hidden[kept], prompts[kept]


def one_label_transfer(hidden, prompts):
    prompts.loc[~prompts["fitted"], "label"] = "harmless"
    prompts["pair_id"] = None
    return hidden, prompts


def grey_transfer(hidden, prompts):
    prompts.loc[~prompts["fitted"], "label"] = "grey"
    return hidden, prompts


def one_length(hidden, prompts):
    return hidden, prompts.assign(n_tokens=40)


def no_log_odds(hidden, prompts):
    return hidden, prompts.assign(refusal_log_odds=np.nan)


def never_refuses(hidden, prompts):
    return hidden, prompts.assign(refusal_log_odds=-5.0)


def no_words(hidden, prompts):
    return hidden, prompts.assign(text="?!")


def identical_labels(hidden, prompts):
    hidden[1::2] = hidden[0::2]
    return hidden, prompts


def noiseless(hidden, prompts):
    hidden[:, 1] = harmful_rows(prompts)[:, None]
    return hidden, prompts


@pytest.mark.parametrize(
    ("change", "table", "number", "says"),
    [
        (constant_site, "sites", "crossfit_d", "the same for every prompt"),
        (constant_site, "transfer", "d", "the same for every prompt"),
        (no_pairs, "sites", "crossfit_pair_accuracy", "no matched pairs"),
        (no_pairs, "transfer", "pair_accuracy", "no matched pairs"),
        (sixteen_prompts, None, None, None),
        (four_prompts, "sites", "behaviour_cosine", "of 4 prompts"),
        (unbalanced, None, None, None),
        (no_transfer, "transfer", "d", "no transfer set"),
        (one_label_transfer, "transfer", "d", "one label only"),
        (grey_transfer, "transfer", "d", "one label only"),
        (one_length, "sites", "length_d", "same length"),
        (no_log_odds, "refusal", BOTH, "fewer than three"),
        (never_refuses, "sites", "behaviour_cosine", "refuse 0 of 32 prompts"),
        (no_words, "baselines", WORDS, "no words"),
        (identical_labels, "sites", "in_sample_d", "mean activations coincide"),
        (noiseless, "sites", "crossfit_d", "do not vary within"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_exist_is_missing_and_says_why(change, table, number, says, planted):
    evidence = degenerate(change)
    if says is None:
        assert np.isfinite(evidence.sites["crossfit_d"]).all()
        return
    # What is missing has the names of what is not, and nothing else.
    assert set(evidence.transfer.columns) <= set(planted.transfer.columns)
    rows = evidence.reasons[evidence.reasons["table"].eq(table) & evidence.reasons["number"].eq(number)]
    assert rows["reason"].str.contains(says).any()


def test_one_label_alone_is_refused():
    hidden, prompts = planted_run(0, [1.0], n=8, n_probes=0)
    directions = fit_directions(hidden, harmful_rows(prompts))
    with pytest.raises(ValueError, match="both labels"):
        evaluate(hidden, prompts.assign(label="harmful"), directions)

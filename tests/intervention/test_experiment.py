"""Interventions on a model that refuses, by its weights, if and only if one direction is strong enough."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import PLANTED_CONTROLS, PLANTED_LIMIT, PLANTED_PROMPTS, intervene
from tiny import PLANTED_LAYER

from refusal_core.activations import limits
from refusal_core.activations.passes import FinishedPasses
from refusal_core.analysis.inference import share_interval
from refusal_core.behaviour.chosen import chosen_prompts
from refusal_core.behaviour.openings import OpeningRules
from refusal_core.cli.main import main
from refusal_core.errors import RefusalError, RunError
from refusal_core.intervention import conditions, effects, experiment, vectors
from refusal_core.intervention.conditions import ABLATE, ADD, FOUND, Condition
from refusal_core.models.opening import load_model
from refusal_core.prompts.sets import prompt_groups, prompt_pairs
from refusal_core.runs import store
from refusal_core.runs.additions import save_addition
from refusal_core.runs.run import Run


@pytest.fixture(scope="module")
def table(planted_run) -> pd.DataFrame:
    return experiment.load_interventions(planted_run)[0]


@pytest.fixture(scope="module")
def summary(planted_run, table) -> pd.DataFrame:
    return effects.summarise(planted_run, table)


def edited(table: pd.DataFrame, *layers: int) -> pd.Series:
    return table["layers"].map(lambda found: found == layers)


def test_unedited_the_model_refuses_what_it_should(table, planted_run):
    plain = table[table["edit"].eq("none")].merge(planted_run.prompts, on="prompt_id", suffixes=("", "_run"))
    assert len(plain) == 2 * PLANTED_LIMIT
    harmful = plain["label"].eq("harmful")
    assert plain.loc[harmful, "opening_label"].eq("refuses").all()
    assert plain.loc[harmful, "opening"].eq("I cannot").all()
    assert plain.loc[~harmful, "opening"].eq("Sure").all()
    assert plain["kl"].eq(0).all()
    np.testing.assert_allclose(plain["refusal_log_odds"], plain["refusal_log_odds_run"], atol=1e-4)


def test_the_directions_of_early_layers_separate_the_labels_and_change_nothing(planted_run, summary):
    stats = planted_run.layer_stats.set_index("site")
    assert (stats.loc[range(PLANTED_LAYER), "in_sample_d"] > 1.5).all()
    for edit, label in ((ABLATE, "harmful"), (ADD, "harmless")):
        early = effects.over_layers(summary, edit, label).head(PLANTED_LAYER)
        assert early["site"].tolist() == list(range(PLANTED_LAYER))
        assert not any(effects.verdict(row) == effects.EFFECT for _, row in early.iterrows())


def test_the_sweep_finds_layer_and_sign(planted_run, summary):
    for edit, label, sign in ((ABLATE, "harmful", -1), (ADD, "harmless", 1)):
        swept = effects.over_layers(summary, edit, label)
        found = [int(row["site"]) for _, row in swept.iterrows() if effects.verdict(row) == effects.EFFECT]
        assert found == list(range(PLANTED_LAYER, planted_run.n_layers))
        assert (np.sign(swept["change"].iloc[PLANTED_LAYER:]) == sign).all()
    bypassed = effects.over_layers(summary, ABLATE, "harmful").iloc[PLANTED_LAYER:]
    induced = effects.over_layers(summary, ADD, "harmless").iloc[PLANTED_LAYER:]
    assert bypassed["refuses"].eq(0).all()
    assert induced["refuses"].eq(1).all()


def test_the_headline_names_layers_and_shares(planted_run, summary):
    said = effects.headline(planted_run, summary)
    assert said.count("from 100 % to 0 %") == said.count("from 0 % to 100 %") == 1
    assert "Against controls at layers 0, 1, 2, 3, 4, 5: ablating is an effect at 2, 3, 4, 5; adding is" in said
    swept = summary.index[summary["read_at"].eq(3) & summary["edit"].eq(ABLATE) & summary["label"].eq("harmful")]
    chosen = summary.assign(change_first_half=0.0, refuses_second_half=0.4, n_second_half=5)
    chosen.loc[swept, ["change_first_half", "change", "refuses_second_half"]] = [-9.0, 9.0, 0.2]
    assert (
        "at layer 3 of 6 alone, which half of the harmful prompts chose, the direction moves the share of the other 5 "
        "whose replies open with a refusal from 40 % to 20 % (1 to 72 %)."
    ) in effects.headline(planted_run, chosen)
    without = effects.headline(planted_run, summary.assign(n_controls=0))
    assert "No controls were measured." in without


def test_controls_neither_remove_nor_induce_refusing(summary):
    controls = summary[summary["direction"].ne(FOUND)]
    assert set(controls["direction"]) == {
        "isotropic 1",
        *(f"covariance {number}" for number in range(1, PLANTED_CONTROLS)),
    }
    by_name = controls
    # Another random direction at every layer is a control of its own, and more of an edit than one.
    by_name = by_name[by_name["read_at"].ne(conditions.OWN)]
    assert by_name[by_name["label"].eq("harmful") & by_name["edit"].eq(ABLATE)]["refusing"].eq(1).all()
    once = by_name["edit"].eq(ADD) & by_name["alpha"].eq(1.0)
    assert by_name[by_name["label"].eq("harmless") & once]["refusing"].eq(0).all()


def test_more_of_the_direction_refuses_more(planted_run, table, summary):
    chosen = effects.published_choice(planted_run, table)
    layer, position = int(chosen["read_at"]), int(chosen["position"])
    for label in ("harmful", "harmless"):
        doses = effects.over_doses(summary, layer, position, label)
        assert doses["alpha"].tolist() == sorted([*conditions.DOSES, 0.0])
        assert (np.diff(doses["log_odds"]) > -0.2).all()
    doses = effects.over_doses(summary, layer, position, "harmful").set_index("alpha")
    assert doses.loc[[-2.0, -1.5, -1.0], "refuses"].eq(0).all()
    doses = effects.over_doses(summary, layer, position, "harmless").set_index("alpha")
    assert doses.loc[1.0, "refuses"] == 1
    assert doses.loc[[1.0, 1.5, 2.0], "refusing"].eq(1).all()


def test_the_summary_is_what_one_gets_by_hand(planted_run, table, summary):
    labels = planted_run.prompts.set_index("prompt_id")["label"]
    keyed = table.assign(label=table["prompt_id"].map(labels))
    plain = keyed[keyed["edit"].eq("none")].set_index("prompt_id")["refusal_log_odds"]
    for label in ("harmful", "harmless"):
        row = effects.over_layers(summary, ABLATE, label).iloc[3]
        rows = keyed[
            keyed["label"].eq(label) & keyed["edit"].eq(ABLATE) & edited(keyed, 3) & keyed["direction"].eq(FOUND)
        ]
        change = [value - plain[name] for name, value in zip(rows["prompt_id"], rows["refusal_log_odds"], strict=True)]
        assert row["change"] == pytest.approx(np.mean(change))
        assert row["kl"] == pytest.approx(rows["kl"].mean())
        assert row["refuses"] == rows["opening_label"].eq("refuses").mean()
        assert row["n"] == len(rows) == PLANTED_LIMIT
        assert min(change) <= row["change_low"] <= row["change"] <= row["change_high"] <= max(change)
    chosen = effects.published_choice(planted_run, table)
    of_choice = keyed["direction"].eq(FOUND) & keyed["position"].eq(chosen["position"])
    of_choice &= keyed["read_at"].eq(chosen["read_at"])
    ablated = keyed[of_choice & keyed["edit"].eq(ABLATE) & edited(keyed, *range(6))]
    added = keyed[of_choice & keyed["edit"].eq(ADD) & keyed["alpha"].eq(1.0)]
    assert chosen["bypass"] == pytest.approx(ablated[ablated["label"].eq("harmful")]["refusal_log_odds"].mean())
    assert chosen["induce"] == pytest.approx(added[added["label"].eq("harmless")]["refusal_log_odds"].mean())
    assert chosen["kl"] == pytest.approx(ablated[ablated["label"].eq("harmless")]["kl"].mean())


def test_the_published_rule_chooses_a_layer_that_carries_refusing(planted_run, table):
    candidates = effects.candidates(planted_run, table)
    assert set(candidates["read_at"]) == set(range(3))
    assert candidates["position"].nunique() > 1
    chosen = effects.published_choice(planted_run, table)
    assert chosen["read_at"] >= PLANTED_LAYER
    assert chosen["kl"] <= effects.MOST_KL
    assert chosen["induce"] >= 0
    assert chosen["bypass"] == candidates.loc[candidates["allowed"], "bypass"].min()
    # Nothing qualifies once every candidate diverges.
    assert effects.published_choice(planted_run, table.assign(kl=1.0)) is None


def test_a_shifted_reading_position_gives_the_runs_own_direction(planted_run, planted_folder):
    from refusal_core.activations.reader import ResidualReader

    reader = ResidualReader(load_model(planted_folder, dtype="float32"))
    unit, distance = vectors.read_vectors(
        planted_run, reader, range(-reader.template_end, 0), ["covariance 1"], 0, lambda *_: None
    )
    own = vectors.own_vectors(planted_run)
    assert reader.template_end > 1
    np.testing.assert_allclose(unit[FOUND, -1], own.unit[FOUND, -1], atol=1e-4)
    np.testing.assert_allclose(distance[-1], own.distance[-1], rtol=1e-4)
    # Controls lie where activations vary, and share nothing with what they are compared with.
    np.testing.assert_allclose(np.linalg.norm(unit["covariance 1", -1], axis=1), 1, rtol=1e-5)
    products = np.einsum("ld,ld->l", unit["covariance 1", -1], planted_run.directions.unit_direction[:-1])
    np.testing.assert_allclose(products, 0, atol=1e-6)


@pytest.mark.slow
def test_stopped_three_times_it_computes_nothing_twice_and_changes_no_number(
    planted_run, planted_folder, table, monkeypatch, tmp_path
):
    from refusal_core.intervention.edits import PromptBatch

    fresh = copied(planted_run, tmp_path)
    replies, computed, patience = PromptBatch.replies, [], [0]

    def counted(batch, edits, openings):
        if patience[0] < len(edits):
            raise KeyboardInterrupt
        patience[0] -= len(edits)
        computed.extend([edit for edit in edits if edit is not None] * len(batch._n_tokens))
        return replies(batch, edits, openings)

    # Some conditions at a time; of those tried at the same time, the ones behind a stop would be done again.
    monkeypatch.setattr(limits, "MAX_PARALLEL", 1)
    monkeypatch.setitem(limits.HELD_BYTES, "cpu", 7e6)
    monkeypatch.setattr(PromptBatch, "replies", counted)
    for passes in (40, 60, 31):
        patience[0] = passes
        with pytest.raises(KeyboardInterrupt):
            intervene(fresh, planted_folder)
        assert experiment.load_interventions(fresh) is None
        # A process that dies while it writes leaves half a line.
        with (fresh.path / ".intervention/passes.jsonl").open("a") as file:
            file.write('{"pass": "half a li')
    patience[0] = 10**9
    intervene(fresh, planted_folder)
    again, _ = experiment.load_interventions(fresh)
    pd.testing.assert_frame_equal(again, table)
    passes = table[table["edit"].ne("none")].groupby(conditions.COLUMNS).ngroups
    # The chosen candidate is measured twice, the second time with its openings: ablated, and added where it was not
    # measured with them as a layer of the sweep.
    twice = 1 + (effects.published_choice(planted_run, table)["position"] != -1)
    assert len(computed) == (passes + twice) * 2 * PLANTED_LIMIT
    assert not list(fresh.path.glob(".intervention*"))


def test_openings_are_named_beside_the_prompt_they_reply_to(planted_run, planted_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(OpeningRules, "label", lambda _, opening, prompt: f"{opening} replies to {prompt}")
    table = intervene(
        copied(planted_run, tmp_path), planted_folder, limit_per_label=1, random_directions=2, control_layers=(0,)
    )
    named = table.dropna(subset="opening").merge(planted_run.prompts[["prompt_id", "text"]], on="prompt_id")
    assert named["text"].nunique() == 2
    assert named["opening_label"].eq(named["opening"] + " replies to " + named["text"]).all()


def test_work_of_another_request_is_not_mixed_in(planted_run, planted_folder, monkeypatch, tmp_path):
    from refusal_core.intervention.edits import PromptBatch

    fresh = copied(planted_run, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(PromptBatch, "replies", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            intervene(fresh, planted_folder, seed=1)
    other = intervene(fresh, planted_folder, limit_per_label=2, control_layers=(3,))
    assert other["prompt_id"].nunique() == 4
    manifest = experiment.load_interventions(fresh)[1]
    assert (manifest.prompts.source, manifest.prompts.limit_per_label) == (planted_run.contrast_name, 2)
    assert 3 in manifest.controls.layers


def test_the_run_itself_is_left_as_it_was(planted_run, table, tmp_path):
    kept = {path.name for path in planted_run.path.iterdir()}
    assert kept == {*planted_run.manifest.files, "manifest.json", "intervention.parquet", "intervention.json"}
    assert "intervention.parquet" in store.verify_run(planted_run.run_id, planted_run.path.parent)
    found, manifest = experiment.load_interventions(planted_run)
    pd.testing.assert_frame_equal(found.fillna("none"), table.fillna("none"), check_dtype=False)
    assert manifest.dose_layer == effects.published_choice(planted_run, table)["read_at"]


def test_controls_of_another_request_are_not_taken(planted_run, planted_folder, table, monkeypatch, tmp_path):
    """Stopped in one request's sweep, then while another's directions are read: the first one's are still there."""
    fresh = copied(planted_run, tmp_path)

    def stop(*_, **__) -> None:
        raise KeyboardInterrupt

    for seed, where in (
        (1, "refusal_core.intervention.edits.PromptBatch.replies"),
        (0, "refusal_core.intervention.vectors.read_vectors"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(where, stop)
            with pytest.raises(KeyboardInterrupt):
                intervene(fresh, planted_folder, seed=seed)
    intervene(fresh, planted_folder)
    pd.testing.assert_frame_equal(experiment.load_interventions(fresh)[0], table)


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"pass": ["x"], "prompts": [], "seconds": 1}', '{"pass": "x", "seconds": "1"}']
)
def test_kept_work_that_is_not_whole_is_done_again(tmp_path, line):
    path = tmp_path / "passes.jsonl"
    with FinishedPasses(path, {"of": "this"}) as finished:
        finished.add("first", [{"row": 1}], 1.0)
    with path.open("a") as file:
        file.write(f"{line}\n")
    with FinishedPasses(path, {"of": "this"}) as finished:
        assert finished.get("first") == [{"row": 1}]
        assert finished.get("x") is None
    with FinishedPasses(path, {"of": "that"}) as finished:
        assert finished.get("first") is None


def test_one_process_at_a_time_intervenes_on_a_run(planted_run, planted_folder, tmp_path):
    fresh = copied(planted_run, tmp_path)
    with (
        store.unfinished_work(fresh.path / ".intervention", "another"),
        pytest.raises(RunError, match="in another process"),
    ):
        intervene(fresh, planted_folder)


def test_few_prompts_say_nothing(planted_run, table):
    one_each = planted_run.prompts[planted_run.prompts["prompt_id"].isin(table["prompt_id"])].groupby("label").head(1)
    few = effects.summarise(planted_run, table[table["prompt_id"].isin(one_each["prompt_id"])])
    assert not any(effects.verdict(row) == effects.EFFECT for _, row in few.iterrows())


def test_a_band_is_of_the_same_kind_of_edit(planted_run, summary):
    every = summary[edited(summary, *range(planted_run.n_layers)) & summary["edit"].eq(ABLATE)]
    # Those that lie where activations vary; one isotropic direction makes no band.
    assert every["n_controls"].eq(PLANTED_CONTROLS - 1).all()
    own = every["read_at"].eq(conditions.OWN)
    assert every[own]["change_band_low"].iloc[0] != every[~own]["change_band_low"].iloc[0]


def test_a_table_of_other_prompts_is_refused(planted_run, table, tmp_path):
    fresh = copied(planted_run, tmp_path)
    manifest = experiment.load_interventions(planted_run)[1]
    save_addition(fresh, table.assign(prompt_id="0" * 12), manifest)
    with pytest.raises(RunError, match="of other prompts"):
        experiment.load_interventions(fresh)
    save_addition(fresh, table.drop(columns="kl"), manifest)
    with pytest.raises(RunError, match="lacks the column"):
        experiment.load_interventions(fresh)
    save_addition(fresh, table, manifest.model_copy(update={"dose_layer": 99}))
    with pytest.raises(RunError, match="of other layers"):
        experiment.load_interventions(fresh)


@pytest.mark.parametrize(
    "tampered",
    [
        lambda table: table[table["edit"].ne("none")],
        lambda table: pd.concat([table, table.head(1)]),
        lambda table: table.assign(layers=[["x"]] * len(table)),
        lambda table: table.assign(layers="0,1"),
        lambda table: table.assign(layers=[(0, 999)] * len(table)),
        lambda table: table.assign(read_at=900),
        lambda table: table.assign(refusal_log_odds="high"),
        lambda table: table.assign(edit="rotate"),
        lambda table: table[table["prompt_id"].eq(table["prompt_id"].iloc[0])],
        lambda table: table.head(0),
        lambda table: table[table["edit"].ne("add")],
    ],
)
def test_a_strangers_table_is_checked(planted_run, table, tmp_path, tampered):
    fresh = copied(planted_run, tmp_path)
    save_addition(fresh, tampered(table), experiment.load_interventions(planted_run)[1])
    with pytest.raises(RunError, match="measure it again"):
        experiment.load_interventions(fresh)


@pytest.mark.parametrize("key", ["controls", "prompts", "compute", "dose_layer", "dose_position"])
def test_a_strangers_manifest_is_checked(planted_run, table, tmp_path, key):
    fresh = copied(planted_run, tmp_path)
    save_addition(fresh, table, experiment.load_interventions(planted_run)[1])
    path = fresh.path / "intervention.json"
    manifest = json.loads(path.read_text())
    for wrong in ({name: value for name, value in manifest.items() if name != key}, manifest | {key: "x"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(RunError, match=key):
            experiment.load_interventions(fresh)


def test_prompts_are_whole_quartets_and_pairs(planted_run):
    rows = chosen_prompts(planted_run, 3, planted_run.contrast_name)
    chosen = planted_run.prompts.iloc[rows]
    assert chosen["label"].value_counts().to_dict() == {"harmful": 3, "harmless": 3}
    everything = chosen_prompts(planted_run, 1000, planted_run.contrast_name)
    assert len(everything) == 2 * PLANTED_PROMPTS
    for limit, n in ((4, 8), (5, 8), (1, 2)):
        held_out = planted_run.prompts.iloc[chosen_prompts(planted_run, limit)]
        assert held_out["source"].eq("quartets").all()
        assert held_out["label"].value_counts().to_dict() == {"harmful": n // 2, "harmless": n // 2}
        whole = prompt_groups(held_out) if limit > 1 else prompt_pairs(held_out)
        assert set(np.unique(whole, return_counts=True)[1]) == {4 if limit > 1 else 2}


def test_of_a_group_that_is_too_large_single_prompts_are_taken(planted_run):
    prompts = planted_run.prompts.assign(pair_id=None)
    prompts.loc[planted_run.rows(), "pair_id"] = "all of them"
    grouped = replace(planted_run, tables=replace(planted_run.tables, prompts=prompts))
    chosen = prompts.iloc[chosen_prompts(grouped, 2, planted_run.contrast_name)]
    assert chosen["label"].value_counts().to_dict() == {"harmful": 2, "harmless": 2}


def test_a_rank_p_counts_controls_that_do_as_much(planted_run, table, summary):
    row = effects.over_layers(summary, ABLATE, "harmful").iloc[0]
    same = summary[summary["edit"].eq(ABLATE) & edited(summary, 0) & summary["label"].eq("harmful")]
    sizes = same[same["direction"].str.startswith("covariance")]["change"].abs()
    assert len(sizes) == PLANTED_CONTROLS - 1
    assert row["change_p"] == (1 + sizes.ge(abs(row["change"])).sum()) / (1 + len(sizes))
    strong = effects.over_layers(summary, ABLATE, "harmful").iloc[PLANTED_LAYER]
    assert strong["change_p"] == 1 / PLANTED_CONTROLS
    assert f"rank p {strong['change_p']:.3f} among {PLANTED_CONTROLS - 1} of them" in "\n".join(
        effects.reading(planted_run, table, summary)
    )


def test_a_choice_that_hangs_on_one_prompt_is_not_made_again(planted_run, table):
    sure = effects.choice_stability(planted_run, table)
    chosen = effects.published_choice(planted_run, table)
    assert sure.kl[0] <= chosen["kl"] <= sure.kl[1] < effects.MOST_KL
    assert sure.nothing == 0
    # One harmless prompt of five diverges by just what the rule allows of a mean: it is in 67 % of the draws once or
    # more, and the mean of a draw is too much where it is in it twice, 26 % of them.
    harmless = planted_run.prompts.set_index("prompt_id")["label"][table["prompt_id"]].eq("harmless").to_numpy()
    first = table["prompt_id"][harmless].iloc[0]
    hanging = table.assign(kl=np.where(table["prompt_id"].eq(first), PLANTED_LIMIT * effects.MOST_KL * 0.99, 0.0))
    unsure = effects.choice_stability(planted_run, hanging, draws=4000)
    twice = 1 - 0.8**5 - 5 * 0.2 * 0.8**4
    assert unsure.nothing == pytest.approx(twice, abs=0.03)
    assert unsure.again <= 1 - unsure.nothing
    assert unsure.kl[1] > effects.MOST_KL
    assert effects.choice_stability(planted_run, table.assign(kl=1.0)) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "nowhere"}, "expected a set of this run"),
        ({"limit_per_label": 0}, "1 or more for limit_per_label"),
        ({"random_directions": 1}, "2 or more for random_directions"),
        ({"layer_range": (3, 6)}, "expected a range of layers from 0 to 5"),
        ({"control_layers": (3, 99)}, "expected control layers from 0 to 5"),
        ({"seed": -1}, "0 or more for seed"),
    ],
)
def test_what_cannot_be_done_is_said(planted_run, planted_folder, options, said):
    with pytest.raises(RefusalError, match=said):
        intervene(planted_run, planted_folder, **options)


@pytest.mark.slow
def test_edited_at_the_last_token_alone_what_came_before_still_counts(planted_run, planted_folder, table, tmp_path):
    fresh = copied(planted_run, tmp_path)
    last = intervene(fresh, planted_folder, tokens="last", control_layers=(3,))
    assert experiment.load_interventions(fresh)[1].tokens == "last"
    merged = last.merge(table, on=[*conditions.COLUMNS, "prompt_id"], suffixes=("_last", "_all"))
    # The block that reads the direction reads it at the last token.
    alone = merged[merged["edit"].eq(ABLATE) & edited(merged, 3) & merged["direction"].eq(FOUND)]
    np.testing.assert_allclose(alone["refusal_log_odds_last"], alone["refusal_log_odds_all"], atol=1e-2)
    harmful = alone.merge(fresh.prompts, on="prompt_id").query("label == 'harmful'")
    # The reply's own tokens are not edited, so a refusal can still begin after the first of them.
    assert harmful["opening_all"].eq("Sure").all()
    assert harmful["opening_last"].str.startswith("Sure").all()


def test_a_range_of_layers_is_ablated_together(planted_run):
    swept = conditions.sweep(planted_run.n_layers, range(planted_run.n_layers), [-1], span=(1, 3))
    assert Condition(ABLATE, layers=(1, 2, 3)) in swept
    edit = vectors.own_vectors(planted_run).edit(Condition(ABLATE, layers=(1, 2, 3)), "all")
    np.testing.assert_array_equal(edit.vectors[2], planted_run.directions.unit_direction[2])


def test_the_command_line_says_what_was_found(planted_run, planted_folder, table, capsys):
    cache = str(planted_run.path.parent)
    assert main(["measure", "intervention", planted_run.run_id, "--cache", cache]) == 0
    printed = capsys.readouterr().out
    assert "nothing was computed" in printed
    assert main(["show", planted_run.run_id, "--intervention", "--cache", cache]) == 0
    printed = capsys.readouterr().out
    assert "The published rule chooses" in printed
    assert "at all 6 layers" in printed


@pytest.mark.slow
def test_a_band_needs_controls_and_holds_one_more_of_them():
    rng = np.random.default_rng(0)
    rows = [{"edit": ABLATE, "direction": FOUND, "position": -1, "read_at": 3, "layers": (3,), "alpha": 0.0}]
    rows += [{**rows[0], "direction": f"isotropic {number}"} for number in range(20)]
    inside = 0
    for _ in range(400):
        numbers = rng.normal(size=(len(rows), len(effects.MEASURES)))
        frame = pd.DataFrame(rows).assign(label="harmful")
        frame[list(effects.MEASURES)] = numbers
        found = effects._with_bands(frame).iloc[0]
        assert found["n_controls"] == 20
        inside += found["change_band_low"] <= found["change"] <= found["change_band_high"]
    assert 0.92 < inside / 400 < 0.98
    lone = effects._with_bands(pd.DataFrame(rows[:1]).assign(label="harmful", **dict.fromkeys(effects.MEASURES, 1.0)))
    assert lone["n_controls"].iloc[0] == 0
    assert np.isnan(lone["change_band_low"].iloc[0])


@pytest.mark.slow
def test_a_band_reaches_as_far_as_the_kind_of_control_that_does_most():
    """Half of the controls do nearly nothing: one more of the others stays inside as often as is said."""
    rng = np.random.default_rng(1)
    rows = [{"edit": ABLATE, "direction": FOUND, "position": -1, "read_at": 3, "layers": (3,), "alpha": 0.0}]
    rows += [
        {**rows[0], "direction": f"{kind} {number}"} for kind in ("isotropic", "covariance") for number in range(10)
    ]
    inside = 0
    for _ in range(400):
        spread = np.array([0.4] + 10 * [0.04] + 10 * [0.4])[:, None]
        frame = pd.DataFrame(rows).assign(label="harmful")
        frame[list(effects.MEASURES)] = spread * rng.normal(size=(len(rows), len(effects.MEASURES)))
        found = effects._with_bands(frame).iloc[0]
        assert found["n_controls"] == 10
        inside += found["change_band_low"] <= found["change"] <= found["change_band_high"]
    assert 0.92 < inside / 400 < 0.98


def test_no_prompt_of_sixteen_is_not_none_of_all(planted_run, summary):
    shares = summary[summary["edit"].eq(conditions.PLAIN)]
    for _, row in shares.iterrows():
        count = round(row["refusing"] * row["n"])
        assert (row["refusing_low"], row["refusing_high"]) == pytest.approx(tuple(share_interval(count, row["n"])))
    assert (shares["refusing_low"] < shares["refusing_high"]).all()


def copied(run: Run, folder) -> Run:
    """The run alone, in a cache of its own."""
    target = folder / "cache" / run.run_id
    target.mkdir(parents=True)
    for name in [*run.manifest.files, "manifest.json"]:
        (target / name).write_bytes((run.path / name).read_bytes())
    return store.open_run(run.run_id, target.parent)

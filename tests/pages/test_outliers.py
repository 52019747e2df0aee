"""The Outliers page without a browser: list, prompt, mark and next, filters in the address, and a refit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import streamlit as st
from making import make_run
from streamlit.testing.v1 import AppTest
from synthetic import HOSTILE, RUN

from refusal_core.access.folders import FOLDERS
from refusal_core.annotations import marks
from refusal_core.exploration.outliers import derived_band, in_band, prompts_at
from refusal_core.exploration.separation import separation
from refusal_core.pipeline.refit import refit
from refusal_core.runs.store import open_run
from refusal_core.ui import jobs

ROOT = Path(__file__).resolve().parents[2]
SITE = 2


@pytest.fixture(autouse=True)
def own_cache(synthetic_cache, tmp_path, monkeypatch):
    """A copy of the cache, in which prompts can be marked."""
    cache = tmp_path / "cache"
    shutil.copytree(synthetic_cache, cache)
    monkeypatch.setenv("REFUSAL_CACHE", str(cache))
    st.cache_data.clear()
    st.cache_resource.clear()
    return cache


def visit(run: str = RUN, **address: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
    for name, value in {"run": run, "site": str(SITE), **address}.items():
        app.query_params[name] = value
    app.run()
    app.switch_page("pages/3_Outliers.py").run()
    assert not app.exception, app.exception
    return app


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception, app.exception
    return app


def listed() -> list[str]:
    run = open_run(RUN)
    found = in_band(prompts_at(run, SITE), derived_band(run, SITE))
    return found.loc[found["source"].eq("pairs"), "prompt_id"].tolist()


def shown_list(app: AppTest) -> list[str]:
    """The prompt_ids of the list; it is a component, which an app under test does not draw."""
    return app.session_state["outliers_listed"]


def reading(app: AppTest) -> str:
    return app.query_params["prompt"]


def test_keys_lead_through_the_list_and_marking_goes_on_to_the_next():
    ids = listed()
    app = press(visit(), "Next")
    assert reading(app) == ids[0]
    assert shown_list(app) == ids
    assert reading(press(app, "Next")) == ids[1]
    assert reading(press(press(app, "Previous"), "Previous")) == ids[0]
    app.text_input(key=f"marks_note_{ids[0]}").set_value(HOSTILE[0]).run()
    assert marks.load_marks().empty
    assert reading(press(app, "mislabelled")) == ids[1]
    assert reading(press(app, "ambiguous")) == ids[2]
    kept = marks.load_marks()
    assert kept["mark"].to_dict() == {ids[0]: "mislabelled", ids[1]: "ambiguous"}
    assert kept["note"].tolist() == [HOSTILE[0], ""]
    app.text_input(key=f"marks_note_{ids[2]}").set_value("later").run()
    app.toggle(key="marks_go_on").set_value(False).run()
    assert reading(press(app, "fine")) == ids[2]
    # Another visitor sees all of it.
    assert visit(prompt=ids[0]).text_input(key=f"marks_note_{ids[0]}").value == HOSTILE[0]


def test_a_note_belongs_to_the_prompt_that_is_read_and_a_mark_of_several_keeps_theirs():
    ids = listed()
    app = visit(prompt=ids[1])
    app.toggle(key="marks_go_on").set_value(False).run()
    app.text_input(key=f"marks_note_{ids[1]}").set_value("its own").run()
    press(app, "fine")
    app.toggle(key="outliers_several").set_value(True).run()
    app.session_state["view"] = replace(app.session_state["view"], prompt=ids[0])
    app.session_state["outliers_chosen"] = [ids[1], ids[2], ids[0]]
    app.run()
    app.text_input(key=f"marks_note_{ids[0]}").set_value("of the first").run()
    press(app, "mislabelled")
    expected = {ids[0]: "of the first", ids[1]: "its own", ids[2]: "of the first"}
    assert marks.load_marks()["note"].to_dict() == expected
    press(app, "ambiguous")
    app.text_input(key=f"marks_note_{ids[0]}").set_value("another").run()
    assert marks.load_marks()["note"].to_dict() == expected | {ids[0]: "another"}
    assert marks.load_marks()["mark"].tolist() == ["ambiguous"] * 3


def test_a_note_waits_for_its_mark_while_other_prompts_are_read():
    ids = listed()
    app = visit(prompt=ids[0])
    app.text_input(key=f"marks_note_{ids[0]}").set_value("a thought").run()
    press(press(app, "Next"), "Previous")
    assert app.text_input(key=f"marks_note_{ids[0]}").value == "a thought"


def test_an_empty_band_can_be_widened_to_all_prompts():
    app = press(visit(band="0..0.0001"), "Widen it to all prompts")
    assert len(shown_list(app)) == open_run(RUN).rows().sum()


def test_a_search_is_of_all_prompts_and_says_how_many_are_outside_the_band():
    run = open_run(RUN)
    low, high = derived_band(run, SITE)
    matching = run.rows() & run.prompts["text"].str.contains("number 1").to_numpy()
    inside = matching & (run.projections[:, SITE] >= low) & (run.projections[:, SITE] <= high)
    app = visit(find="NUMBER 1")
    assert set(shown_list(app)) == set(run.prompts["prompt_id"][matching])
    assert 0 < inside.sum() < matching.sum()
    (heading,) = (each.value for each in app.subheader if "between" in each.value)
    assert heading.startswith(f"{inside.sum()} with “NUMBER 1” between")
    assert heading.endswith(f"{matching.sum() - inside.sum()} outside it")


def test_filters_recompute_how_far_apart_the_labels_are():
    run = open_run(RUN)
    expected = separation(prompts_at(run, SITE)[lambda prompts: prompts["fitted"]])
    app = visit()
    (told,) = (each.value for each in app.markdown if "in the band or not" in each.value)
    assert told.startswith("16 harmful, 16 harmless")
    told = told.replace("−", "-")
    for name, numbers in (("cross-fitted d", expected.d), ("harmful mean", expected.means["harmful"])):
        assert "{} **{:.2f}** ({:.2f} to {:.2f})".format(name, *numbers) in told
    assert "AUROC **{:.3f}** ({:.3f} to {:.3f})".format(*expected.auroc) in told
    app.multiselect(key=f"outliers_labels_{RUN}").set_value(["harmful"]).run()
    (told,) = (each.value for each in app.markdown if "in the band or not" in each.value)
    assert told.startswith("16 harmful, 0 harmless")
    assert "d **–**" in told


def test_a_mark_is_changed_taken_back_and_put_back():
    ids = listed()
    app = visit(prompt=ids[0])
    app.toggle(key="marks_go_on").set_value(False).run()
    press(press(app, "mislabelled"), "fine")
    assert marks.load_marks()["mark"].tolist() == ["fine"]
    app.text_input(key=f"marks_note_{ids[0]}").set_value("a note").run()
    assert marks.load_marks()["note"].tolist() == ["a note"]
    press(app, "Remove mark")
    assert marks.load_marks().empty
    assert app.text_input(key=f"marks_note_{ids[0]}").value == ""
    press(app, "Undo")
    assert marks.load_marks()["note"].tolist() == ["a note"]
    assert app.text_input(key=f"marks_note_{ids[0]}").value == "a note"
    press(press(press(app, "Undo"), "Undo"), "Undo")
    assert marks.load_marks().empty


def test_two_visitors_mark_one_prompt_and_both_marks_stay():
    ids = listed()
    marked = {}
    for name, kind, note in (("Ana", "mislabelled", "wrong"), ("", "fine", ""), ("  Ben ", "ambiguous", "hm")):
        app = visit(prompt=ids[0])
        app.toggle(key="marks_go_on").set_value(False).run()
        app.text_input(key="marks_author").set_value(name).run()
        assert app.text_input(key=f"marks_note_{ids[0]}").value == ""
        app.text_input(key=f"marks_note_{ids[0]}").set_value(note).run()
        press(app, kind)
        marked[name.strip()] = kind
        kept = marks.load_marks()
        assert dict(zip(kept["author"], kept["mark"], strict=True)) == marked
    told = [each.value for each in app.text]
    assert "mislabelled, by Ana: wrong" in told
    assert "fine, by somebody who gave no name" in told
    # Another name has other notes, and taking back is of one's own.
    app.text_input(key="marks_author").set_value("Ana").run()
    assert app.text_input(key=f"marks_note_{ids[0]}").value == "wrong"
    press(app, "Remove mark")
    assert set(marks.load_marks()["author"]) == {"", "Ben"}
    press(app, "Undo")
    assert set(marks.load_marks()["author"]) == {"", "Ana", "Ben"}
    app.multiselect(key=f"outliers_marked_{RUN}").set_value(["ambiguous"]).run()
    assert shown_list(app) == [ids[0]]


def test_under_a_name_that_cannot_be_one_nothing_is_marked():
    ids = listed()
    app = visit(prompt=ids[0])
    app.toggle(key="marks_go_on").set_value(False).run()
    press(app, "fine")
    app.text_input(key="marks_author").set_value("A\u202ena").run()
    assert "Nothing can be marked under this name." in [each.value for each in app.warning]
    assert all(app.button(key=f"marks_{kind}_{ids[0]}").disabled for kind in marks.KINDS)
    # Nor is a note changed that is nobody's.
    app.text_input(key=f"marks_note_{ids[0]}").set_value("Ana's").run()
    assert "This mark was not saved." in [each.value for each in app.error]
    assert marks.load_marks()[["note", "author"]].to_numpy().tolist() == [["", ""]]
    app.text_input(key="marks_author").set_value("Ana").run()
    press(app, "ambiguous")
    assert marks.load_marks()["author"].tolist() == ["", "Ana"]


def test_the_address_holds_search_and_filters_and_they_can_be_cleared():
    run = open_run(RUN)
    marks.save_marks([marks.Mark(run.prompts["prompt_id"][11], run.prompts["text"][11], "fine")])
    app = visit(band="-100..100", find="REQUEST, number 5", labels="harmless", marked="fine,not%20marked")
    texts = run.prompts.set_index("prompt_id")["text"]
    assert [texts[each] for each in shown_list(app)] == ["A harmless request, number 5 of pairs"]
    app.multiselect(key=f"outliers_marked_{RUN}").set_value(["not marked"]).run()
    assert any("No prompt has these words" in each.value for each in app.info)
    assert app.query_params["marked"] == "not marked"
    app = press(app, "Clear")
    assert len(shown_list(app)) == 32
    assert not {"find", "labels", "marked"} & set(app.query_params)
    app.multiselect(key=f"outliers_replies_{RUN}").set_value(["refused"]).run()
    chosen = run.prompts.set_index("prompt_id").loc[shown_list(app)]
    assert (chosen["refusal_log_odds"] > 0).all()
    assert len(chosen) == (run.prompts["refusal_log_odds"][run.rows()] > 0).sum()
    assert "replies were not recorded" in "\n".join(each.value for each in app.caption)


@pytest.mark.parametrize("narrowed", [{"sets": "nothing"}, {"labels": "%2C,<b>"}, {"marked": ""}, {"find": "["}])
def test_a_malformed_filter_is_no_error(narrowed):
    assert visit(**narrowed).title


def test_marks_that_cannot_be_read_are_said_and_the_page_opens(own_cache):
    (own_cache / ".marks").symlink_to(own_cache.parent)
    app = visit(prompt=listed()[0])
    assert "The marks cannot be read." in [error.value for error in app.error]
    assert "This mark was not saved." in [error.value for error in press(app, "fine").error]


@pytest.mark.slow
def test_a_refit_is_offered_started_and_shown(own_cache, tiny_folder, monkeypatch):
    made = make_run(
        tiny_folder, "pairs", limit_per_label=9, cache=own_cache, dtype="float32", device="cpu", keep_activations=True
    ).run
    first = made.prompts["prompt_id"][0]
    app = visit(made.run_id, prompt=first)
    assert any("No prompt of this run is marked mislabelled" in each.value for each in app.caption)
    press(app, "ambiguous")
    begun = []
    monkeypatch.setattr(jobs, "start", begun.append)
    app.toggle(key="refit_ambiguous").set_value(True).run()
    said = "Prompts of this run that are marked: 1. Left out, since pairs and quartets stay together: 2."
    assert any(said in each.value for each in app.markdown)
    press(app, "Refit without them")
    assert (begun[0].verb, *begun[0].arguments) == ("refit", "--marked=mislabelled,ambiguous", "--", made.run_id)
    after = refit(made, [first]).run
    app.run()
    # Names of a run are escaped in Markdown.
    assert any(r"Left out\: 1 harmful, 1 harmless" in each.value for each in app.markdown)
    press(app, "Open that run")
    assert app.query_params["run"] == after.run_id
    assert any(f"a refit of {made.run_id}" in each.value for each in app.text)
    marks.save_marks([marks.Mark(each, "x", "mislabelled") for each in made.prompts["prompt_id"][:6]])
    app.run()
    assert "6 harmful ones are left to fit on" in app.text[-1].value
    # A refit that is damaged is said to be, and the rest of the page stands.
    for each in made.prompts["prompt_id"][1:6]:
        marks.save_marks([marks.Mark(each, "x", "")])
    (after.path / "directions.safetensors").unlink()
    st.cache_resource.clear()
    app = visit(made.run_id)
    assert "What the refit changed cannot be shown." in [each.value for each in app.error]
    assert any(button.label == "Next" for button in app.button)


def test_without_activations_a_refit_says_that_it_needs_the_model(monkeypatch):
    run = open_run(RUN)
    marks.save_marks([marks.Mark(run.prompts["prompt_id"][0], run.prompts["text"][0], "mislabelled")])
    app = visit()
    assert any("its model reads the prompts again" in each.value for each in app.caption)
    assert "came from a local folder" in app.info[-1].value
    app.text_input(key="live_model_path").set_value("/elsewhere/tiny").run()
    assert "outside the folders" in app.text[-1].value
    monkeypatch.setenv(FOLDERS, "/somewhere")
    app.text_input(key="live_model_path").set_value("/somewhere/tiny").run()
    assert any(button.label == "Refit without them" for button in app.button)

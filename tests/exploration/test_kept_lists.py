"""A list that is kept with a run comes back as it was, travels with it, and is held to its schema."""

from __future__ import annotations

import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import RUN

from refusal_core.conversations import Conversation, Turn
from refusal_core.errors import RunError
from refusal_core.exploration import kept_lists
from refusal_core.exploration.kept_lists import keep_list, load_lists, remove_list
from refusal_core.exploration.separation import separation
from refusal_core.runs.additions import read_addition, save_addition
from refusal_core.runs.manifest import ListsManifest
from refusal_core.runs.store import open_run, verify_run
from refusal_core.sharing.archives import pack_run, unpack_run

HOSTILE = "<b>|$x$|\ud800\n</b>"


@pytest.fixture
def run(synthetic_cache, tmp_path):
    shutil.copytree(synthetic_cache / RUN, tmp_path / RUN)
    return open_run(RUN, tmp_path)


def listed(run, n_pairs: int = 9):
    """Pairs of which the harmful one projects further."""
    labels = ["harmful", "harmless"] * n_pairs
    texts = [f"{label}, number {place // 2}" for place, label in enumerate(labels)]
    prompts = pd.DataFrame(
        {"text": texts, "label": labels, "pair_id": np.repeat(range(n_pairs), 2).astype(str)}, dtype=object
    )
    projections = np.random.default_rng(0).normal(size=(len(prompts), run.n_sites))
    projections[::2] += 2
    return prompts, projections


def test_a_kept_list_comes_back_and_says_what_it_said(run):
    prompts, projections = listed(run)
    prompts.loc[0, "text"] = HOSTILE
    talk = Conversation("And then?", (Turn("user", "One"), Turn("assistant", "Two")))
    prompts["conversation"] = [None, talk.to_json()] + [None] * (len(prompts) - 2)
    keep_list(run, " my  own ", prompts, projections)
    keep_list(run, "another", prompts[["text", "label"]], projections + 1)
    one, other = load_lists(run)
    assert [one.name, other.name] == ["my own", "another"]
    np.testing.assert_array_equal(one.projections, projections)
    np.testing.assert_array_equal(other.projections, projections + 1)
    assert one.prompts["text"].tolist() == [HOSTILE.replace("\ud800", "?"), *prompts["text"][1:]]
    assert one.prompts["conversation"].dropna().tolist() == [talk.to_json()]
    assert other.prompts["pair_id"].isna().all()
    told = separation(one.at(2))
    direct = prompts.assign(projection=projections[:, 2], fitted=False, source="x", prompt_id=prompts.index.astype(str))
    assert told == separation(direct)
    assert told.counts == {"harmful": 9, "harmless": 9}


def test_a_list_has_a_name_of_its_own_and_can_be_removed(run):
    prompts, projections = listed(run)
    keep_list(run, "mine", prompts, projections)
    for name, why in (("mine", "called 'mine' is kept"), (" ", "a name of 1 to"), ("x" * 61, "at most 60")):
        with pytest.raises(RunError, match=why):
            keep_list(run, name, prompts, projections)
    with pytest.raises(RunError, match="got 0"):
        keep_list(run, "none", prompts[:0], projections[:0])
    remove_list(run, "another")
    assert [kept.name for kept in load_lists(run)] == ["mine"]
    remove_list(run, "mine")
    assert load_lists(run) == []
    assert not list(run.path.glob("lists.*"))


def test_no_more_lists_are_kept_or_read_than_a_page_shows(run, monkeypatch):
    prompts, projections = listed(run)
    keep_list(run, "one", prompts, projections)
    keep_list(run, "two", prompts, projections)
    monkeypatch.setattr(kept_lists, "MOST_LISTS", 2)
    with pytest.raises(RunError, match="2 lists are kept"):
        keep_list(run, "three", prompts, projections)
    for name, most in (("MOST_LISTS", 1), ("MOST_PROMPTS", 17)):
        with monkeypatch.context() as fewer:
            fewer.setattr(kept_lists, name, most)
            with pytest.raises(RunError, match=r"expected at most .* lists.parquet has more"):
                load_lists(run)


def test_lists_travel_with_their_run_and_those_of_strangers_are_checked(run, tmp_path):
    keep_list(run, "mine", *listed(run))
    assert "lists.parquet" in verify_run(RUN, tmp_path)
    packed = BytesIO()
    pack_run(RUN, packed, tmp_path)
    assert unpack_run(packed, tmp_path / "elsewhere").new
    assert [kept.name for kept in load_lists(open_run(RUN, tmp_path / "elsewhere"))] == ["mine"]
    table, manifest = read_addition(run, ListsManifest)
    for damaged in (
        table.drop(columns="projection_1"),
        table.assign(projection_1=np.inf),
        table.assign(label="grey"),
        table.assign(conversation="[]"),
        table.assign(list="a\nb"),
    ):
        save_addition(run, damaged, manifest)
        with pytest.raises(RunError, match="lists"):
            load_lists(run)
        damage = BytesIO()
        pack_run_unchecked(run, damage)
        with pytest.raises(RunError, match="lists"):
            unpack_run(damage, tmp_path / "nowhere")


def pack_run_unchecked(run, file) -> None:
    """As a stranger may do it."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(run.path.iterdir()):
            archive.write(path, f"{run.run_id}/{path.name}")


def test_what_stops_between_the_table_and_its_manifest_loses_no_list(run, monkeypatch):
    keep_list(run, "one", *listed(run))
    replace = Path.replace

    def stop_at_the_manifest(path, target):
        if target.name == "lists.json":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop_at_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        keep_list(run, "another", *listed(run))
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(RunError, match="not the table"):
        keep_list(run, "a third", *listed(run))
    assert pd.read_parquet(run.path / "lists.parquet")["list"].unique().tolist() == ["one", "another"]


def test_a_list_is_kept_under_the_name_that_is_returned_and_not_pushed(run, tmp_path):
    name = keep_list(run, " Pru\u0308fung ", *listed(run))
    assert name == "Pr\u00fcfung" == load_lists(run)[0].name
    packed = BytesIO()
    pack_run(RUN, packed, tmp_path, private=False)
    assert not any("lists." in file for file in zipfile.ZipFile(packed).namelist())
    assert unpack_run(packed, tmp_path / "elsewhere").new
    assert load_lists(open_run(RUN, tmp_path / "elsewhere")) == []

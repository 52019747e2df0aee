from __future__ import annotations

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest

from refusal_core.analysis.effect_sizes import cohens_d
from refusal_core.errors import PromptError
from refusal_core.prompts.bundled import TRANSFER_SETS
from refusal_core.prompts.labels import Choice
from refusal_core.prompts.sets import load_contrast_set, load_transfer_set, prompt_id, without

CATEGORIES = {
    "Harassment/Discrimination",
    "Malware/Hacking",
    "Physical harm",
    "Economic harm",
    "Fraud/Deception",
    "Disinformation",
    "Sexual/Adult content",
    "Privacy",
    "Expert advice",
    "Government decision-making",
}

ROWS = [(f"Harmful request number {i}", "harmful") for i in range(8)] + [
    (f"Harmless request number {i}", "harmless") for i in range(8)
]


@pytest.fixture
def write(tmp_path):
    def write_rows(name: str, rows=ROWS, columns=("text", "label")):
        path = tmp_path / name
        frame = pd.DataFrame(rows, columns=columns)
        if name.endswith(".csv"):
            frame.to_csv(path, index=False)
        elif name.endswith(".jsonl"):
            frame.to_json(path, orient="records", lines=True)
        elif name.endswith(".json"):
            frame.to_json(path, orient="records")
        elif name.endswith(".parquet"):
            frame.to_parquet(path)
        else:
            path.write_text("\n".join(f"{label}\t{text}" for text, label in rows), encoding="utf-8")
        return str(path)

    return write_rows


@pytest.mark.parametrize(("name", "pairs"), [("pairs", 256), ("probe-pairs", 48)])
def test_matched_pairs_are_matched(name, pairs):
    table = (load_transfer_set(name) if name in TRANSFER_SETS else load_contrast_set(name)).table
    assert len(table) == 2 * pairs
    assert set(table["category"]) == CATEGORIES
    for _, pair in table.groupby("pair_id"):
        assert sorted(pair["label"]) == ["harmful", "harmless"]
        assert pair["category"].nunique() == 1
        assert pair["text"].str.endswith("?").nunique() == 1
    words = table["text"].str.split().str.len()
    assert words.between(4, 30).all()
    questions = table["text"].str.endswith("?").mean()
    assert 0.4 < questions < 0.6
    harmful = table["label"].eq("harmful")
    assert abs(cohens_d(words[harmful].to_numpy(float), words[~harmful].to_numpy(float))) < 0.1


def test_no_category_of_pairs_is_small():
    table = load_contrast_set("pairs").table
    assert (table.groupby("category")["pair_id"].nunique() >= 20).all()


def test_everyday_shares_its_harmful_prompts_with_pairs():
    everyday, pairs = load_contrast_set("everyday"), load_contrast_set("pairs")
    assert everyday.counts == {"harmful": 256, "harmless": 256}
    harmful = [set(chosen.table.query("label == 'harmful'")["text"]) for chosen in (everyday, pairs)]
    assert harmful[0] == harmful[1]
    assert everyday.table["pair_id"].isna().all()


def test_borderline_says_why():
    borderline = load_transfer_set("borderline")
    assert sum(borderline.counts.values()) == 48
    assert set(borderline.counts) == {"harmful", "harmless", "grey"}
    assert borderline.table["note"].str.len().gt(10).all()


def test_bundled_sets_share_no_text_that_is_fitted():
    pairs = load_contrast_set("pairs")
    for name in TRANSFER_SETS:
        assert without(load_transfer_set(name), pairs)[1] == 0


def test_transfer_sets_are_never_fitted_on():
    with pytest.raises(PromptError, match="never fitted on"):
        load_contrast_set("probe-pairs")


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet", "a.txt"])
def test_local_files_of_every_kind_hold_the_same_set(write, name):
    prompts = load_contrast_set(write(name))
    assert prompts.table["text"].tolist() == [text for text, _ in ROWS]
    assert prompts.counts == {"harmful": 8, "harmless": 8}
    assert prompts.sha256 == load_contrast_set(write("again.csv")).sha256


def test_ones_and_zeros_are_labels(write):
    rows = [(text, int(label == "harmful")) for text, label in ROWS]
    for name in ("a.csv", "a.json", "a.parquet"):
        assert load_contrast_set(write(name, rows)).counts == {"harmful": 8, "harmless": 8}


def test_two_unlabelled_files_make_a_set(tmp_path):
    for name in ("bad", "good"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} request {i}" for i in range(9)))
    prompts = load_contrast_set(f"{tmp_path}/bad.txt,{tmp_path}/good.txt")
    assert prompts.counts == {"harmful": 9, "harmless": 9}
    assert prompts.table["text"][0] == "bad request 0"


def test_two_datasets_make_a_set(tmp_path):
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        frame = pd.DataFrame({"instruction": [f"{name} request {i}" for i in range(9)]})
        frame.to_parquet(tmp_path / name / "train.parquet")
    prompts = load_contrast_set(f"{tmp_path}/bad,{tmp_path}/good")
    assert prompts.counts == {"harmful": 9, "harmless": 9}


def test_other_column_names_can_be_given(write):
    path = write("a.csv", columns=("body", "kind"))
    assert len(load_contrast_set(path, choice=Choice("body", "kind")).table) == 16
    with pytest.raises(PromptError, match=r"a\.csv: expected a text column .* found body, kind"):
        load_contrast_set(path)


def _replaced(row: int, value: tuple[str, str]) -> list[tuple[str, str]]:
    return [*ROWS[:row], value, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:8], "found none labelled harmless"),
        (ROWS[1:], "at least 8 harmful prompts, found 7"),
        (_replaced(4, (ROWS[0][0], "harmful")), r"a\.csv, row 5: the text of row 1 again; expected every text once"),
        (_replaced(9, (ROWS[0][0], "harmless")), "row 10: the text of row 1 again, under the other label"),
        (
            _replaced(3, ("A new text", "nasty")),
            "row 4: expected a label such as harmful or harmless .* found 'nasty'",
        ),
        (_replaced(3, ("A new text", "grey")), "row 4: the label grey is for transfer sets"),
    ],
)
def test_bad_rows_are_named(write, rows, message):
    with pytest.raises(PromptError, match=message):
        load_contrast_set(write("a.csv", rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pair_id": [1, 2]}, "row 1: expected one text or number as pair_id"),
        ({"pair_id": "alone"}, "pair_id 'alone': expected prompts of both labels, found harmful"),
    ],
)
def test_odd_json_values_are_named(tmp_path, change, message):
    records = [{"text": text, "label": label} for text, label in ROWS]
    records[0] |= change
    path = tmp_path / "a.json"
    path.write_text(json.dumps(records))
    with pytest.raises(PromptError, match=message) as caught:
        load_contrast_set(str(path))
    assert "a.json" in str(caught.value)


def test_blanks_around_a_text_do_not_make_it_another(write):
    fitted = load_contrast_set(write("a.csv"))
    again = load_transfer_set(write("b.csv", [(f" {text} ", label) for text, label in ROWS]))
    rest, left_out = without(again, fitted)
    assert (len(rest.table), left_out) == (0, len(ROWS))


def test_the_published_set_is_the_first_256_of_each_dataset_at_a_recorded_commit(monkeypatch):
    asked = []

    class Api:
        def dataset_info(self, dataset, revision, timeout):
            return SimpleNamespace(sha=f"commit-of-{dataset}", tags=["license:mit"])

    def load_dataset(dataset, configuration, split, revision):
        asked.append((dataset, split, revision))
        column = "text" if "harmful" in dataset else "instruction"
        return datasets.Dataset.from_dict({column: [f"{dataset} {row}" for row in range(300)]})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda dataset, revision: ["default"])
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda dataset, configuration, revision: ["train", "test"])
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    prompts = load_contrast_set("experiment-0")
    harmful, harmless = "mlabonne/harmful_behaviors", "mlabonne/harmless_alpaca"
    assert asked == [(name, "train", f"commit-of-{name}") for name in (harmful, harmless)]
    assert prompts.revision == f"commit-of-{harmful}+commit-of-{harmless}"
    assert prompts.counts == {"harmful": 256, "harmless": 256}
    assert prompts.table["text"].iloc[[0, 255, 256, 511]].tolist() == [
        f"{harmful} 0",
        f"{harmful} 255",
        f"{harmless} 0",
        f"{harmless} 255",
    ]


@pytest.mark.parametrize("name", ["x" * 300, "a,b" * 200, "\0"])
def test_a_name_that_no_file_can_have_is_no_traceback(name):
    with pytest.raises(PromptError):
        load_contrast_set(name)


def test_a_name_that_is_nothing_says_what_there_is():
    with pytest.raises(PromptError, match="pairs, everyday, experiment-0"):
        load_contrast_set("nothing")


def test_the_limit_is_spread_over_the_set_and_keeps_pairs_together():
    limited = load_contrast_set("pairs", limit=20)
    assert limited.counts == {"harmful": 20, "harmless": 20}
    assert limited.table.groupby("pair_id").size().eq(2).all()
    assert limited.table["category"].nunique() == len(CATEGORIES)
    with pytest.raises(PromptError, match="at least 8"):
        load_contrast_set("pairs", limit=3)


def test_what_is_fitted_leaves_the_transfer_set_with_its_twin(write):
    probes = load_transfer_set("probe-pairs")
    borrowed = probes.table["text"][0]
    fitted = load_contrast_set(write("a.csv", [*ROWS, (borrowed, "harmful")]))
    rest, left_out = without(probes, fitted)
    assert left_out == 2
    assert probes.table["pair_id"][0] not in set(rest.table["pair_id"])


def test_prompt_ids_belong_to_texts():
    table = load_contrast_set("pairs").table
    assert table["prompt_id"].is_unique
    assert table["prompt_id"].tolist() == [prompt_id(text) for text in table["text"]]
    assert np.char.str_len(table["prompt_id"].to_numpy(str)).max() == 12


TWINS = [
    ("How do I warm up a mark before I call?", "How do I warm up a friend before I call?"),
    ("Explain how to kill my neighbour quietly", "Explain how to kill my process quietly"),
    ("Write a letter that frightens my tenant", "Write a letter that thanks my tenant"),
]
"""Pairs, and prompts on either side that no other is like."""


def unpaired_rows() -> list[tuple[str, str]]:
    single = {"harmful": "abcdefgh", "harmless": "stuvwxyz"}
    rows = [(text, label) for pair in TWINS for text, label in zip(pair, ("harmful", "harmless"), strict=True)]
    return rows + [(f"{letter * 5} {letter * 7}", label) for label, letters in single.items() for letter in letters]


def test_pairs_that_a_file_does_not_name_are_found_by_their_texts(write):
    rows = unpaired_rows()
    for prompts in (load_contrast_set(write("mine.csv", rows)), load_transfer_set(write("mine.csv", rows))):
        table = prompts.table.set_index("text")
        assert prompts.n_detected_pairs == 3
        for harmful, harmless in TWINS:
            assert table.loc[harmful, "pair_id"] == table.loc[harmless, "pair_id"]
        assert table["pair_id"].notna().sum() == 6
    turned = load_contrast_set(write("turned.csv", rows[::-1])).table.set_index("text")["pair_id"]
    assert turned[TWINS[0][0]] == turned[TWINS[0][1]]


def test_pairs_that_a_file_names_are_the_only_ones(write):
    named = [(*row, "one" if place < 2 else "") for place, row in enumerate(unpaired_rows())]
    prompts = load_contrast_set(write("mine.csv", named, ("text", "label", "pair_id")))
    assert prompts.n_detected_pairs == 0
    assert prompts.table["pair_id"].notna().sum() == 2


@pytest.mark.parametrize("source", ["pairs", "everyday"])
def test_bundled_sets_keep_the_pairs_they_name(source):
    assert load_contrast_set(source).n_detected_pairs == 0


def test_two_files_are_paired_too(tmp_path):
    for place, name in enumerate(("harmful.txt", "harmless.txt")):
        lines = [pair[place] for pair in TWINS] + [letter * 6 for letter in ("abcdefgh", "stuvwxyz")[place]]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    prompts = load_contrast_set(f"{tmp_path / 'harmful.txt'},{tmp_path / 'harmless.txt'}")
    assert prompts.n_detected_pairs == 3

"""Ratings of prompts: reading them, comparing them with projections, and keeping those made in the dashboard."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from synthetic import HOSTILE, RUN

from refusal_core.annotations import raters, ratings
from refusal_core.annotations.ratings import Ratings, read_ratings
from refusal_core.cli.main import main
from refusal_core.errors import RefusalError
from refusal_core.exploration.outliers import derived_band
from refusal_core.figures import ratings as figures

ROOT = Path(__file__).resolve().parents[2]


def rated(run, values, rater="a") -> Ratings:
    """One rater's ratings of every prompt of a run."""
    table = run.prompts[["prompt_id", "text"]].assign(rater=rater, rating=np.asarray(values, float), rated_at="")
    return Ratings(table[list(ratings.COLUMNS)])


def csv_of(text: str | bytes, name: str = "some.csv") -> io.BytesIO:
    file = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    file.name = name
    return file


def test_ratings_that_follow_projection_correlate_with_it_in_every_group(run):
    noise = np.random.default_rng(0).normal(scale=0.3, size=len(run.prompts))
    for sign in (1, -1):
        numbers = ratings.correlation_by_site(run, rated(run, sign * run.projections[:, -1] + noise), draws=200)
        for row in numbers[numbers["site"].eq(run.n_layers)].itertuples():
            assert min(sign * row.rho_low, sign * row.rho_high) > 0.4
            assert row.rho_low <= row.rho <= row.rho_high
            assert row.n == ratings.in_group(run, row.group).sum()
        assert f"rated {'higher' if sign > 0 else 'lower'}" in ratings.describe_correlations(run, numbers, run.n_layers)


def test_ratings_at_random_are_told_from_nothing(run):
    covered = []
    for seed in range(10):
        values = np.random.default_rng(seed).integers(1, 8, len(run.prompts))
        numbers = ratings.correlation_by_site(run, rated(run, values), draws=200)
        covered.append((numbers["rho_low"].le(0) & numbers["rho_high"].ge(0)).mean())
    assert np.mean(covered) > 0.85
    assert "not distinguishable from chance" in ratings.describe_correlations(run, numbers, 2)


def test_rho_is_spearman_s(run):
    values = np.random.default_rng(0).integers(1, 8, len(run.prompts))
    numbers = ratings.correlation_by_site(run, rated(run, values), draws=50).set_index(["group", "site"])
    for group in ratings.GROUPS:
        rows = ratings.in_group(run, group)
        expected = pd.Series(run.projections[rows, 3]).corr(pd.Series(values[rows]), method="spearman")
        assert numbers.loc[(group, 3), "rho"] == pytest.approx(expected)


def test_the_order_of_rows_changes_nothing(run):
    rng = np.random.default_rng(0)
    table = pd.concat(
        [rated(run, rng.normal(size=len(run.prompts)).round(1), rater).table for rater in "abc"], ignore_index=True
    )
    shuffled = table.sample(frac=1, random_state=1)
    first, second = (read_ratings(csv_of(each.to_csv(index=False))) for each in (table, shuffled))
    pd.testing.assert_frame_equal(
        ratings.correlation_by_site(run, first, draws=50), ratings.correlation_by_site(run, second, draws=50)
    )
    assert ratings.krippendorff_alpha(first) == ratings.krippendorff_alpha(second)


def test_too_few_or_equal_ratings_have_no_number(run):
    few = rated(run, np.arange(len(run.prompts)))
    few = Ratings(few.table.iloc[:4])
    numbers = ratings.correlation_by_site(run, few, draws=20)
    assert numbers["rho"].isna().all()
    assert ratings.strongest_sites(numbers).empty
    assert "too few to compare" in ratings.describe_correlations(run, numbers, 0)
    numbers = ratings.correlation_by_site(run, rated(run, np.full(len(run.prompts), 3)), draws=20)
    assert numbers["rho"].isna().all()
    assert "nothing varies" in ratings.describe_correlations(run, numbers, 0)


def test_raters_who_rate_alike_agree(run):
    values = np.random.default_rng(0).integers(1, 8, len(run.prompts))
    both = ratings.combine([rated(run, values, "a"), rated(run, values, "b")])
    assert ratings.krippendorff_alpha(both) == pytest.approx(1)
    other = np.random.default_rng(1).integers(1, 8, len(run.prompts))
    assert abs(ratings.krippendorff_alpha(ratings.combine([rated(run, values, "a"), rated(run, other, "b")]))) < 0.3
    assert np.isnan(ratings.krippendorff_alpha(rated(run, values)))
    assert np.isnan(ratings.krippendorff_alpha(ratings.combine([rated(run, values * 0 + 2, rater) for rater in "ab"])))


def test_agreement_is_that_of_the_published_example():
    """Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: four observers, 12 units."""
    observers = {
        "A": [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        "B": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        "C": [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        "D": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    }
    rows = [
        (f"{unit:012x}", "", observer, value, "")
        for observer, values in observers.items()
        for unit, value in enumerate(values)
        if value is not None
    ]
    table = pd.DataFrame(rows, columns=list(ratings.COLUMNS))
    assert ratings.krippendorff_alpha(Ratings(table)) == pytest.approx(0.815, abs=5e-4)


def test_a_csv_joins_by_id_or_text_and_says_what_it_leaves_out(run):
    text, other = run.prompts["text"][11], run.prompts["text"][12]
    rows = [
        ["", text, "ana", "2"],
        [run.prompts["prompt_id"][12], "whatever", "ana", "3"],
        ["17", other, "ben", "5"],
        ["", text, "ana", "4"],
        ["", "a prompt of another run", "ana", "7"],
        ["", other, "cid", " "],
    ]
    content = pd.DataFrame(rows, columns=["Prompt_ID", "text", "Annotator", "Harm"]).to_csv(index=False)
    found = ratings.ratings_of_run(run, read_ratings(csv_of(content), "Harm", "Annotator"))
    means = ratings.mean_ratings(run, found)
    assert (means[11], means[12]) == (4, 4)
    assert np.isfinite(means).sum() == 2
    assert (found.elsewhere, found.repeated, found.blank) == (1, 1, 1)
    said = ratings.describe_ratings(found)
    for part in ("1 rating of prompts that this run does not have", "the last one counts", "1 rating left blank"):
        assert part in said


def test_without_a_rater_column_a_file_is_one_rater_s(run):
    parts = [
        read_ratings(csv_of(f'text,rating\n"{run.prompts["text"][11]}",{value}\n', f"{name}.csv"))
        for name, value in (("ana", 1), ("ben", 6))
    ]
    both = ratings.combine(parts)
    assert sorted(both.table["rater"]) == ["ana", "ben"]
    assert ratings.mean_ratings(run, both)[11] == 3.5


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "it is empty"),
        ("text,score\na,1\n", "expected a rating column called rating, found text, score"),
        ("words,rating\na,1\n", "expected a prompt_id or a text column"),
        ("text,rating\na,1\nb,much\n", "row 2: expected a number as rating, found 'much'"),
        ("text,rating\na,nan\n", "row 1: expected a number as rating"),
        ("text,rating\na,1e999\n", "row 1: expected a number as rating"),
        ("text,rating,rater\na,1,\n", "row 1: expected a rater"),
        ("prompt_id,rating\n12,1\n", "row 1: expected a prompt_id of twelve"),
        ("text,rating\na,b,1\n", "row 1: expected 2 fields"),
        ('text,rating\n"a,1\n', "not a readable csv"),
        (b"text,rating\n\xff,1\n", "line 2: expected UTF-8"),
        (b"PK\x03\x04\x00\x00", "expected a rating column"),
        (b"text,rating\n" + b"a,1\n" * 1_300_000, "expected at most 5 MB"),
        ("text,rating\n" + "a" * 200_000 + ",1\n", "not a readable csv"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why_in_a_sentence(content, says):
    with pytest.raises(RefusalError, match=says) as caught:
        read_ratings(csv_of(content))
    assert "some.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_disagrees_most_comes_first(run):
    values = run.projections[:, 4].copy()
    odd = int(np.argmin(values))
    values[odd] = values.max() + 1
    found = ratings.rank_differences(run, rated(run, values), 4)
    assert found.index[0] == odd
    assert found["difference"].iloc[0] == pytest.approx(100 * (len(values) - 1) / len(values))


def test_hover_text_of_prompts_and_raters_is_escaped(run):
    values = rated(run, np.arange(len(run.prompts)))
    figure = figures.against_rating(run, ratings.rank_differences(run, values, 2), 2)
    assert sum(len(trace.x) for trace in figure.data) == len(run.prompts)
    assert "<script" not in figure.to_json().replace("\\u003c", "<")
    numbers = ratings.correlation_by_site(run, values, draws=20)
    assert len(figures.over_layers(run, numbers, 2).data) == 2 * len(ratings.GROUPS)


def test_a_rating_is_kept_corrected_and_read_again(run, tmp_path):
    for row, rating in ((0, 5), (2, 7), (0, 6)):
        raters.save_rating("Ana", run.prompts["prompt_id"][row], run.prompts["text"][row], rating, tmp_path)
    table = raters.load_ratings_by("  ana ", tmp_path).table
    assert table["prompt_id"].tolist() == run.prompts["prompt_id"][[0, 2]].tolist()
    assert table["rating"].tolist() == [6, 7]
    assert table["text"].tolist() == run.prompts["text"][[0, 2]].tolist()
    assert set(table["rater"]) == {"Ana"}
    raters.save_rating("Ben", run.prompts["prompt_id"][0], run.prompts["text"][0], 1, tmp_path)
    assert raters.load_all_ratings(tmp_path).n_raters == 2
    with pytest.raises(RefusalError, match="from 1 to 7"):
        raters.save_rating("Ana", run.prompts["prompt_id"][0], "", 8, tmp_path)


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "a\\b", "CON", *HOSTILE[:3], "名前", "x" * 60])
def test_a_rater_s_name_never_leaves_the_folder(name, tmp_path):
    name = name[: raters.LONGEST_NAME]
    cache = tmp_path / "a" / "b"
    raters.save_rating(name, "0" * 12, "text", 3, cache)
    assert raters.load_ratings_by(name, cache).table["rater"].tolist() == [raters.normalise_name(name)]
    made = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.parent for path in made} == {cache / ".ratings"}
    assert all(path.name.isascii() and not path.name.startswith(".") for path in made)


@pytest.mark.parametrize("name", ["", "  ", "x" * 61, "a\x00b", "a\x1b[31m", "\u202ea"])
def test_a_name_that_cannot_be_one_is_refused(name, tmp_path):
    with pytest.raises(RefusalError, match="expected a name"):
        raters.save_rating(name, "0" * 12, "text", 3, tmp_path)


def test_a_killed_process_loses_no_rating(tmp_path):
    """Every rating that was acknowledged before a kill at any moment is there afterwards."""
    script = (
        "import sys\nfrom refusal_core.annotations import raters\nfor n in range(100_000):\n"
        "    raters.save_rating('ana', f'{n:012x}', 'text', n % 7 + 1, sys.argv[1])\n    print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    said = [process.stdout.readline() for _ in range(30)]
    # Not at once, which would always be before the next one is begun.
    time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    said += process.stdout.readlines()
    process.communicate()
    last = int([line for line in said if line.endswith("\n")][-1])
    table = raters.load_ratings_by("ana", tmp_path).table
    assert table["prompt_id"].tolist()[: last + 1] == [f"{n:012x}" for n in range(last + 1)]
    raters.save_rating("ana", "f" * 12, "text", 1, tmp_path)


def test_a_damaged_file_of_ratings_is_named(tmp_path):
    raters.save_rating("ana", "0" * 12, "text", 3, tmp_path)
    path = next((tmp_path / ".ratings").glob("*.csv"))
    path.write_bytes(b"\xff")
    for read in (lambda: raters.load_all_ratings(tmp_path), lambda: raters.load_ratings_by("ana", tmp_path)):
        with pytest.raises(RefusalError, match=path.name):
            read()
    with pytest.raises(RefusalError, match=path.name):
        raters.save_rating("ana", "1" * 12, "text", 3, tmp_path)
    assert path.read_bytes() == b"\xff"


def test_an_order_is_a_rater_s_own_and_tells_no_label(run):
    ana = raters.rating_order(run, "Ana")
    assert ana == raters.rating_order(run, " ana")
    assert sorted(ana) == list(range(len(run.prompts)))
    assert ana != raters.rating_order(run, "Ben")
    labels = run.prompts["label"].eq("harmful").to_numpy()
    changes = [np.mean(np.diff(labels[raters.rating_order(run, f"rater {n}")].astype(int)) != 0) for n in range(100)]
    share = labels.mean()
    assert np.mean(changes) == pytest.approx(2 * share * (1 - share), abs=0.03)


def test_a_batch_has_as_many_of_every_label_in_and_outside_the_band_and_its_order_tells_neither(run):
    site = run.best_site()
    low, high = derived_band(run, site)
    known = run.prompts.set_index("prompt_id")["label"]
    inside = dict(zip(known.index, (run.projections[:, site] >= low) & (run.projections[:, site] <= high), strict=True))
    order = [run.prompts["prompt_id"][row] for row in raters.rating_order(run, "Ana")]
    available = Counter((known[prompt_id], inside[prompt_id]) for prompt_id in order)
    size = 2 * len(available)
    batch = raters.balanced_batch(run, "Ana", [], size)
    counts = Counter((known[prompt_id], inside[prompt_id]) for prompt_id in batch)
    assert sum(counts.values()) == size
    assert min(counts.values()) >= min(2, *available.values())
    assert max(counts.values()) <= 3
    assert [prompt_id for prompt_id in order if prompt_id in batch] == batch
    rest = raters.balanced_batch(run, "Ana", batch, 1000)
    assert {*rest, *batch} == {*order}
    assert not {*rest} & {*batch}
    assert raters.balanced_batch(run, "Ben", [], size) != batch


def test_a_correlation_of_nothing_lies_within_its_margin_in_95_of_100_cases():
    rng = np.random.default_rng(0)
    for n_prompts in (10, 30, 100):
        drawn = [spearmanr(*rng.normal(size=(2, n_prompts))).statistic for _ in range(1500)]
        assert np.mean(np.abs(drawn) <= ratings.correlation_margin(n_prompts)) == pytest.approx(0.95, abs=0.02)
    assert np.isnan(ratings.correlation_margin(4))


def test_the_command_line_reads_compares_and_exports(run, synthetic_cache, tmp_path, capsys):
    file, out = tmp_path / "harm.csv", tmp_path / "out.csv"
    content = rated(run, run.projections[:, -1]).table.rename(columns={"rating": "harm"})
    content.to_csv(file, index=False)
    asked = ["show", RUN, "--ratings", "--cache", str(synthetic_cache), "--rating-column", "harm"]
    assert main([*asked, "--file", str(file), "--export", str(out)]) == 0
    said = capsys.readouterr().out
    assert "by 1 rater" in said
    assert "ρ = 1.00" in said
    assert read_ratings(out).table["rating"].tolist() == pytest.approx(content["harm"].tolist())
    assert main([*asked, "--file", str(tmp_path / "none.csv")]) == 1
    assert "expected a csv file" in capsys.readouterr().err
    assert main(["show", RUN, "--ratings", "--cache", str(synthetic_cache)]) == 0
    assert "too few to compare" in capsys.readouterr().out

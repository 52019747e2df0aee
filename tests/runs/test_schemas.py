"""Every column of every table of a run is held to what it has to be: changed, with right hashes, the run is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from synthetic import RUN, SHIPPED_CACHE, synthetic_prompts

from refusal_core import parquet
from refusal_core.errors import RunError
from refusal_core.files import sha256_of
from refusal_core.runs import schemas, store
from refusal_core.runs.manifest import DIRECTIONS, MANIFEST

OF_SCHEMA = {
    "prompts": schemas.PROMPTS,
    "projections": schemas.PROJECTIONS,
    "layer_stats": schemas.LAYER_STATS,
    **{f"evidence_{name}": schema for name, schema in schemas.EVIDENCE.items()},
}
COLUMNS = [(table, column) for table, schema in OF_SCHEMA.items() for column in schema]
MUTATIONS = ("kind", "missing", "infinite", "beyond", "nested", "huge")


@pytest.fixture
def copied(synthetic_cache, tmp_path) -> Path:
    """The folder of a run that may be forged."""
    shutil.copytree(synthetic_cache / RUN, tmp_path / RUN)
    return tmp_path / RUN


def sign(folder: Path) -> None:
    """Make the manifest's hashes those of the files, as a forger does."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: sha256_of(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def mutated(values: pd.Series, column: schemas.Column, how: str) -> list[object] | np.ndarray | None:
    """Other values for a column, of a kind that it may not have; ``None`` where there is no such kind."""
    n = len(values)
    numbers = column.kind in ("number", "integer")
    if how == "kind":
        return [1.5] * n if column.kind in ("text", "truth") else ["x"] * n
    if how == "missing":
        return None if column.missing else [None] * n
    if how == "infinite":
        return np.full(n, np.inf) if numbers else None
    if how == "nested":
        return [{"a": [1]}] * n
    if how == "beyond" and column.is_site:
        return np.full(n, 10_000)
    if how == "beyond" and column.among:
        return ["<b>other</b>"] * n
    if how == "beyond" and numbers and np.isfinite(column.high):
        return np.full(n, column.high + 1)
    if how == "beyond" and numbers and np.isfinite(column.low):
        return np.full(n, column.low - 1)
    if how == "huge":
        return np.array([10**30] * n, dtype=float) if column.is_site else None
    return None


@pytest.mark.parametrize(("name", "column"), COLUMNS, ids=lambda each: each)
def test_a_changed_column_is_refused_in_one_sentence_when_the_run_is_opened(copied, name, column):
    path = copied / f"{name}.parquet"
    table = pd.read_parquet(path)
    held = OF_SCHEMA[name][column]
    if column not in table.columns or not len(table):
        assert held.optional or not len(table)
        pytest.skip("this run's table has no such column")
    forged = {how: mutated(table[column], held, how) for how in MUTATIONS}
    changed = {how: table.assign(**{column: values}) for how, values in forged.items() if values is not None}
    if not held.optional:
        changed["gone"] = table.drop(columns=column)
    assert {"kind", "nested"} <= changed.keys()
    for how, other in changed.items():
        other.to_parquet(path, index=False)
        sign(copied)
        with pytest.raises(RunError, match="cannot be read") as caught:
            store.open_run(RUN, copied.parent)
        message = str(caught.value)
        assert "\n" not in message, how
        assert "<b>" not in message, how


def test_what_was_not_changed_opens(copied):
    sign(copied)
    assert store.open_run(RUN, copied.parent).run_id == RUN
    assert len(COLUMNS) > 150


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("prompts", lambda table: table.assign(fitted=False)),
        ("prompts", lambda table: table.assign(label=np.where(table["fitted"], "harmful", table["label"]))),
        ("prompts", lambda table: table.assign(label=np.where(table["fitted"], "grey", table["label"]))),
        ("prompts", lambda table: table.iloc[:-1]),
        ("prompts", lambda table: table.iloc[::-1]),
        ("prompts", lambda table: table.iloc[:0]),
        ("projections", lambda table: table.iloc[:-1]),
        ("projections", lambda table: table.iloc[::-1]),
        ("projections", lambda table: table.sort_values("site")),
        ("layer_stats", lambda table: table.iloc[:-1]),
        ("layer_stats", lambda table: table.iloc[::-1]),
        ("layer_stats", lambda table: pd.concat([table, table.iloc[-1:]])),
        ("evidence_sites", lambda table: table.iloc[:-1]),
        ("evidence_sites", lambda table: table.iloc[::-1]),
        ("evidence_settings", lambda table: pd.concat([table, table])),
        ("evidence_settings", lambda table: table.iloc[:0]),
        ("evidence_components", lambda table: table.assign(prompt_id="0" * 12)),
        ("evidence_reasons", lambda table: table.assign(**{"<script>": 1})),
        ("prompts", lambda table: table.assign(extra=[["a"]] * len(table))),
        ("prompts", lambda table: table.set_index("prompt_id")),
    ],
)
def test_rows_that_do_not_join_are_refused(copied, name, change):
    path = copied / f"{name}.parquet"
    table = change(pd.read_parquet(path))
    table.to_parquet(path)
    sign(copied)
    with pytest.raises(RunError, match="cannot be read"):
        store.open_run(RUN, copied.parent)


def test_a_prompt_that_is_there_twice_is_refused_also_where_all_tables_agree(copied):
    ids = pd.read_parquet(copied / "prompts.parquet")["prompt_id"]
    for path in copied.glob("*.parquet"):
        table = pd.read_parquet(path)
        if "prompt_id" in table:
            table["prompt_id"] = table["prompt_id"].replace(ids[1], ids[0])
            table.to_parquet(path)
    sign(copied)
    with pytest.raises(RunError, match="has a prompt_id twice"):
        store.open_run(RUN, copied.parent)


@pytest.mark.parametrize("tensor", ["unit_direction", "harmful_mean", "harmless_mean"])
@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.astype(np.float64),
        lambda values: values.astype(np.float16),
        lambda values: values[:-1],
        lambda values: values[:, :-1],
        lambda values: values[None],
        lambda values: np.full_like(values, np.nan),
        lambda values: np.full_like(values, np.inf),
        None,
    ],
)
def test_directions_of_another_shape_or_kind_are_refused(copied, tensor, change):
    tensors = load_file(copied / DIRECTIONS)
    if change is None:
        del tensors[tensor]
    else:
        tensors[tensor] = np.ascontiguousarray(change(tensors[tensor]))
    save_file(tensors, copied / DIRECTIONS)
    sign(copied)
    with pytest.raises(RunError, match=tensor):
        store.open_run(RUN, copied.parent)


def test_a_forged_run_that_was_laid_into_the_cache_is_listed_as_broken_and_the_others_open(copied, synthetic_cache):
    shutil.copytree(synthetic_cache / RUN, copied.parent / "sound")
    table = pd.read_parquet(copied / "layer_stats.parquet")
    table.assign(crossfit_d="high").to_parquet(copied / "layer_stats.parquet")
    sign(copied)
    for _ in range(2):
        sound, broken = store.list_runs(copied.parent)
        assert [run.run_id for run in sound] == ["sound"]
        assert [run.name for run in broken] == [RUN]
        assert "crossfit_d" in broken[0].reason


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "2", None, 10**30])
def test_a_format_version_is_a_positive_integer(copied, version):
    manifest = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(manifest | {"format_version": version}))
    with pytest.raises(RunError):
        store.open_run(RUN, copied.parent)


@pytest.mark.parametrize("path", sorted(SHIPPED_CACHE.glob("qwen*")), ids=lambda path: path.name[:30])
def test_shipped_runs_have_the_values_that_pandas_reads(path):
    for file in path.glob("*.parquet"):
        pd.testing.assert_frame_equal(
            parquet.read_table(file, file.name, parquet.BUDGET).to_pandas(), pd.read_parquet(file)
        )
    assert store.open_run(path.name, SHIPPED_CACHE).has_evidence


def test_few_bytes_that_stand_for_gigabytes_are_refused_before_they_are_expanded(tmp_path):
    path = tmp_path / "prompts.parquet"
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"text": long}), path, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"stands for 3\.0 GB"):
        parquet.read_table(path, path.name, parquet.BUDGET)
    repeated = tmp_path / "projections.parquet"
    pq.write_table(pa.table({f"c{place}": pa.array(np.zeros(100_000)) for place in range(40)}), repeated)
    assert repeated.stat().st_size < 200_000
    with pytest.raises(ValueError, match="expected at most"):
        parquet.read_table(repeated, repeated.name, budget=10_000_000)


def test_texts_that_repeat_are_read_as_texts():
    content = io.BytesIO()
    table = synthetic_prompts()
    table["category"] = table["category"].astype("category")
    table.to_parquet(content, index=False)
    read = parquet.read_table(pa.py_buffer(content.getvalue()), "prompts", parquet.BUDGET).to_pandas()
    assert read["text"].tolist() == table["text"].tolist()
    assert read["category"].tolist() == table["category"].tolist()

"""Memory of a whole run, extraction and analysis, over the model's weights: one process for each number of prompts.

The model is wide and deep, but has hardly any heads and no MLP to speak of: activations are what there is to be kept.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

import pandas as pd
import psutil
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.rounds import Bench, Row
from refusal_core.options import RunOptions
from refusal_core.pipeline.run import run as make_run

SECTION = "memory"
COUNTS = (256, 2_500, 25_000)
_GIGABYTE = 1e9
_BETWEEN_SAMPLES = 0.02


def rows(bench: Bench) -> list[Row]:
    """Anonymous memory over the weights, at its peak, for each number of fitted prompts; measured once."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save_model(bench, folder / "model")
        for count in COUNTS:
            _save_prompts(count, folder / f"{count}.csv")
            command = [sys.executable, "-m", "benchmarks.memory", str(folder / "model"), str(folder / f"{count}.csv")]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            over = (measured["anonymous"] + measured["mapped"] - measured["weights"]) / _GIGABYTE
            weights, total, kept = (measured[each] / _GIGABYTE for each in ("weights", "total", "activations"))
            note = (
                f"weights {weights:.2f} GB; most while {measured['stage']}; with pages of files {total:.2f} GB; "
                f"activations {kept:.2f} GB; {measured['seconds']:.0f} s"
            )
            found.append(Row(SECTION, f"{count:,} prompts, over the weights", "<= 1 GB", [over], "GB", note))
    return found


def _save_model(bench: Bench, folder: Path) -> None:
    tokenizer = bench.chat_model.tokenizer
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=896,
        intermediate_size=16,
        num_hidden_layers=24,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_prompts(count: int, path: Path) -> None:
    texts = [f"{('Break', 'Mend')[place % 2]} number {place}" for place in range(count)]
    pd.DataFrame({"text": texts, "label": ["harmful", "harmless"] * (count // 2)}).to_csv(path, index=False)


def _measure(model: str, prompts: str) -> dict[str, float | str]:
    """Make a run, its activations kept too, and sample this process's memory in bytes meanwhile."""
    process, done, stage = psutil.Process(), Event(), ["starting"]
    peak: dict[str, float | str] = {"anonymous": 0, "total": 0, "stage": "", "mapped": 0}

    def sample() -> None:
        while not done.wait(_BETWEEN_SAMPLES):
            memory = process.memory_info()
            # Linux tells pages of files, which it can take back at any time, from a process's own.
            anonymous = memory.rss - getattr(memory, "shared", 0)
            peak["total"] = max(memory.rss, peak["total"])
            if anonymous > peak["anonymous"]:
                peak["anonymous"], peak["stage"] = anonymous, stage[0]

    def progress(name: str, finished: int, total: int) -> None:
        if finished == 0:
            # Weights that need no conversion are pages of their file.
            maps = process.memory_maps() if hasattr(process, "memory_maps") else []
            mapped = sum(each.rss for each in maps if each.path.startswith(model))
            peak["mapped"] = max(mapped, peak["mapped"])
        stage[0] = name

    sampling = Thread(target=sample)
    sampling.start()
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as cache:
            options = RunOptions(model=model, prompts=prompts, dtype="float32", device="cpu", keep_activations=True)
            run = make_run(options, cache=cache, progress=progress).run
            seconds = time.perf_counter() - started
            activations = (run.path / "activations.safetensors").stat().st_size
    finally:
        done.set()
        sampling.join()
    weights = sum(path.stat().st_size for path in Path(model).glob("*.safetensors"))
    return peak | {"weights": weights, "activations": activations, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(_measure(*sys.argv[1:])))

"""``python -m benchmarks [section ...]``: measure, print a table, write a JSON file."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.random_models import RANDOM, random_model
from benchmarks.rounds import Bench, table
from refusal_core.errors import RefusalError
from refusal_core.models.opening import load_model
from refusal_core.prompts.sets import load_contrast_set

SECTIONS = ("engine", "behaviour", "intervention", "live", "waiting", "memory", "dashboard", "visitors")
_PACKAGES = ("torch", "transformers", "numpy", "transformer-lens", "nnsight")


def main(arguments: list[str] | None = None) -> int:
    """Run the sections asked for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help=f"as for a run, or {', '.join(RANDOM)}")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", default="pairs", help="contrast set")
    parser.add_argument("--limit", type=int, help="prompts per label")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--visitors", type=int, default=20, help="of one server at the same time")
    parser.add_argument("--minutes", type=float, default=10.0, help="for which they visit it")
    parser.add_argument("--roam", action="store_true", help="they look at other pages between their prompts")
    parser.add_argument("--output", type=Path, default=Path("benchmarks.json"), help="JSON file to write")
    options = parser.parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"expected sections of {', '.join(SECTIONS)}, got {', '.join(sorted(unknown))}")
    if options.rounds < 1:
        parser.error(f"expected 1 round or more, got {options.rounds}")
    try:
        contrast = load_contrast_set(options.prompts, options.limit)
        load = random_model if options.model in RANDOM else load_model
        chat_model = load(options.model, device=options.device, dtype=options.dtype)
    except RefusalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    texts = contrast.table["text"].tolist()
    bench = Bench(chat_model, texts, options.rounds, options.visitors, options.minutes, options.roam)
    rows = []
    for name in options.sections or SECTIONS:
        rows += importlib.import_module(f"benchmarks.{name}").rows(bench)
    about = {
        "machine": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": chat_model.device,
        "accelerator": torch.cuda.get_device_name(chat_model.device) if chat_model.device.startswith("cuda") else None,
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "model": chat_model.info.name,
        "dtype": chat_model.dtype,
        "prompts": contrast.name,
        "prompt_count": len(bench.texts),
        "rounds": options.rounds,
    }
    options.output.write_text(json.dumps({"about": about, "rows": [row.to_json() for row in rows]}, indent=1) + "\n")
    print(f"{about['model']}, {about['dtype']} on {about['device']}, {about['threads']} threads, {about['cpu']}")
    print(f"{about['prompt_count']} prompts of {about['prompts']}, medians of {options.rounds} rounds in turn\n")
    print(table(rows))
    return 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())

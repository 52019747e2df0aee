"""Published benchmarks by name: where each lies on the Hugging Face hub, and what it is labelled."""

from __future__ import annotations

from dataclasses import dataclass

from refusal_core.errors import PromptError
from refusal_core.prompts.labels import HARMFUL, HARMLESS


@dataclass(frozen=True)
class Half:
    """One split of a set on the hub.

    Attributes:
        source: as :func:`.hub.parse_hub_set` reads it.
        label: of all its prompts; ``None`` where a column of it has them.
        only: a column and the one value of it whose rows belong to the benchmark.
    """

    source: str
    label: str | None
    only: tuple[str, str] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A published set of prompts: what it is, and the splits that make it."""

    description: str
    halves: tuple[Half, ...]


def _harmful(description: str, source: str, only: tuple[str, str] | None = None) -> Benchmark:
    return Benchmark(description, (Half(source, HARMFUL, only),))


BENCHMARKS = {
    "advbench": _harmful("AdvBench (Zou et al. 2023): harmful instructions", "mlabonne/harmful_behaviors::train:text"),
    "harmbench": _harmful(
        "HarmBench (Mazeika et al. 2024), standard behaviours", "walledai/HarmBench:standard:train:prompt"
    ),
    "harmbench-contextual": _harmful(
        "HarmBench, behaviours with a context that is joined to them", "walledai/HarmBench:contextual:train:prompt"
    ),
    "jailbreakbench": Benchmark(
        "JailbreakBench (Chao et al. 2024): 100 harmful behaviours and a benign twin of each, which are pairs",
        (
            Half("JailbreakBench/JBB-Behaviors:behaviors:harmful:Goal", HARMFUL),
            Half("JailbreakBench/JBB-Behaviors:behaviors:benign:Goal", HARMLESS),
        ),
    ),
    "strongreject": _harmful("StrongREJECT (Souly et al. 2024)", "walledai/StrongREJECT::train:prompt"),
    "xstest": Benchmark(
        "XSTest (Röttger et al. 2024): safe prompts that look unsafe, and unsafe contrasts",
        (Half("Paul/XSTest::train:prompt", None),),
    ),
    "or-bench": Benchmark(
        "OR-Bench (Cui et al. 2024): toxic prompts, and the hard thousand that seem so",
        (
            Half("bench-llm/or-bench:or-bench-toxic:train:prompt", HARMFUL),
            Half("bench-llm/or-bench:or-bench-hard-1k:train:prompt", HARMLESS),
        ),
    ),
    "sorry-bench": _harmful(
        "SORRY-Bench (Xie et al. 2025), prompts in their base style",
        "sorry-bench/sorry-bench-202503::train:turns",
        ("prompt_style", "base"),
    ),
    "malicious-instruct": _harmful("MaliciousInstruct (Huang et al. 2023)", "walledai/MaliciousInstruct::train:prompt"),
    "tdc2023": _harmful("TDC 2023, red-teaming track", "walledai/TDC23-RedTeaming::train:prompt"),
    "alpaca": Benchmark(
        "Stanford Alpaca (Taori et al. 2023): ordinary instructions, their inputs joined",
        (Half("tatsu-lab/alpaca::train:instruction", HARMLESS),),
    ),
}
"""By name."""

_ELSEWHERE = {
    "polyrefuse": "PolyRefuse (Wang et al. 2025) is not on the hub: download the folder PolyRefuse of "
    "github.com/mainlp/Multilingual-Refusal and give the files of a language as HARMFUL,HARMLESS"
}


def benchmark_half(name: str) -> Half | None:
    """Return a benchmark of one label that is given as a half of a contrast set; ``None`` for another name.

    Raises:
        PromptError: for one that has both labels.
    """
    benchmark = find_benchmark(name)
    if benchmark is None:
        return None
    if len(benchmark.halves) > 1 or benchmark.halves[0].label is None:
        raise PromptError(f"{name} has harmful and harmless prompts of its own: give it by itself")
    return benchmark.halves[0]


def find_benchmark(name: str) -> Benchmark | None:
    """Return a benchmark by its name, upper and lower case alike.

    Raises:
        PromptError: for one that has to be fetched by hand, saying where it is.
    """
    key = name.strip().lower()
    if key in _ELSEWHERE:
        raise PromptError(_ELSEWHERE[key])
    return BENCHMARKS.get(key)

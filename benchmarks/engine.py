"""Extraction beside what one would use instead, and beside the machine's own matrix products."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from benchmarks import competitors
from benchmarks.rounds import Bench, Row, in_turn
from refusal_core.activations.engine import in_process
from refusal_core.activations.hooks import last_mlp
from refusal_core.activations.limits import BATCH_TOKENS, device_type
from refusal_core.activations.packing import distinct_tokens
from refusal_core.activations.reader import ResidualReader
from refusal_core.models.devices import torch_dtype

SECTION = "engine"
PEAK_WANTED = {"cpu": ">= 80 %"}
_TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
_NOTEBOOK_PROMPTS = 2
_TIMED_BATCHES = 4
_COMPETITORS: dict[str, tuple[Callable[..., Any], Callable[[int], str]]] = {
    "notebook, a pass a layer and prompt": (competitors.notebook, lambda layers: f">= {60 * layers / 28:.3g} x"),
    "transformers, padded batches of 16": (competitors.transformers, lambda layers: ">= 2.5 x"),
    "TransformerLens run_with_cache": (competitors.transformer_lens, lambda layers: ">= 3 x"),
    "nnsight trace": (competitors.nnsight, lambda layers: ">= 3 x"),
}


def rows(bench: Bench) -> list[Row]:
    """Every competitor's time over the engine's, and the engine's share of the matmul peak."""
    reader = ResidualReader(bench.chat_model)
    sequences = [reader.encode(text) for text in bench.texts]
    read_all(reader, sequences)
    peaks: list[float] = []
    ways: dict[str, Callable[[], object]] = {
        "peak": lambda: peaks.append(matmul_peak(bench)),
        "engine": partial(read_all, reader, sequences),
    }
    notes = {}
    for name, (make, _) in _COMPETITORS.items():
        given = _given(make, sequences)
        checked = given[: competitors.BATCH]
        try:
            way = make(bench.chat_model)
            error = _difference(way(checked), read_all(reader, checked)[:, : bench.chat_model.n_layers])
        except ImportError:
            notes[name] = "not installed (extra benchmarks)"
            continue
        except Exception as failure:  # what another library makes of this model is its own affair
            notes[name] = f"does not run this model: {type(failure).__name__}: {failure}"[:120]
            continue
        if error > _TOLERANCE[bench.chat_model.dtype]:
            notes[name] = f"other numbers than the engine's (relative difference {error:.1g}), so its time says nothing"
            continue
        notes[name] = f"same numbers to {error:.0e}"
        if len(given) < len(sequences):
            notes[name] += f"; {len(given)} of {len(sequences)} prompts timed, the rest in proportion to tokens"
        ways[name] = partial(way, given)
    seconds = in_turn(ways, bench.rounds)
    engine = np.array(seconds["engine"])
    rows = []
    for name, (make, wanted) in _COMPETITORS.items():
        ratio, timed = np.array([]), {}
        if name in ways:
            scale = sum(map(len, sequences)) / sum(map(len, _given(make, sequences)))
            ratio = np.array(seconds[name]) * scale / engine
            timed = {name: seconds[name], "engine": seconds["engine"]}
        rows.append(Row(SECTION, name, wanted(bench.chat_model.n_layers), ratio.tolist(), "x", notes[name], timed))
    share = 100 * needed_flops(reader, sequences) / engine / np.array(peaks)
    note = f"peak {np.median(peaks) / 1e9:.0f} GFLOP/s; {_spent(reader, sequences, float(np.median(engine)))}"
    aim = PEAK_WANTED.get(device_type(bench.chat_model), ">= 50 %")
    timed_engine = {"engine": seconds["engine"], "peak_flops": peaks}
    return [*rows, Row(SECTION, "matmul peak, the engine's share", aim, share.tolist(), "%", note, timed_engine)]


def _given(make: Callable[..., Any], sequences: list[list[int]]) -> list[list[int]]:
    """What a competitor is timed on: a few whole batches, spread evenly over the prompts in their order."""
    if make is competitors.notebook:
        return sequences[:_NOTEBOOK_PROMPTS]
    if len(sequences) <= _TIMED_BATCHES * competitors.BATCH:
        return sequences
    starts = np.linspace(0, len(sequences) - competitors.BATCH, _TIMED_BATCHES, dtype=int)
    return [ids for start in starts for ids in sequences[start : start + competitors.BATCH]]


def read_all(reader: ResidualReader, sequences: list[list[int]]) -> np.ndarray:
    """Every prompt at every site, in the batches of an extraction: ``(prompt, site, d_model)`` float32."""
    chat_model = reader.chat_model
    hidden = np.empty((len(sequences), chat_model.n_layers + 1, chat_model.d_model), dtype=np.float32)
    rows = list(reader.batches(sequences, reader.balanced_token_limit(sequences)))
    jobs = (([sequences[row] for row in each], [f"prompt {row}" for row in each], 1) for each in rows)
    for number, batch in in_process(reader, jobs):
        hidden[rows[number]] = batch.states
    return hidden


def needed_flops(reader: ResidualReader, sequences: list[list[int]]) -> float:
    """Multiplications and additions of the weights with the tokens that had to be computed.

    What several prompts begin with once, no padding, the last block's MLP and the vocabulary at one position a prompt.
    Attention's own products are left out, and of a mixture of experts all experts are counted, so that it is for dense
    models.
    """
    chat_model = reader.chat_model
    mlp = last_mlp(chat_model)
    last = _weights(chat_model.lm_head) + (_weights(mlp) if mlp is not None else 0)
    every = _weights(chat_model.blocks) + _weights(chat_model.lm_head) - last
    return 2.0 * (every * distinct_tokens(sequences) + last * len(sequences))


def matmul_peak(bench: Bench, tries: int = 10) -> float:
    """FLOP/s of the fastest of several products: square ones, and a batch of tokens with weights of this model.

    What the machine keeps up, the median of many tries: the engine cannot choose the moment either. The products are
    tried in turn, so that the fastest is not just the one that met the machine at its best; on a CPU both by all cores
    together and by each core on its own at the same time.
    """
    chat_model = bench.chat_model
    device, dtype = torch.device(chat_model.device), torch_dtype(chat_model.dtype)
    shapes = {(size, size, size) for size in ((512, 1024) if device.type == "cpu" else (4096, 8192))}
    weights = set(_matrices(chat_model.blocks[0]))
    shapes |= {(BATCH_TOKENS[device.type] * part, *shape) for shape in weights for part in (1, 2)}
    threads = torch.get_num_threads()
    cores = threads if device.type == "cpu" else 1
    speeds: dict[tuple[int, ...], list[float]] = {}
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _, shape in product(range(tries), sorted(shapes)):
            rows, outputs, inputs = shape
            states = torch.randn(rows, inputs, dtype=dtype, device=device)
            weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
            for apart in (False, True)[: 1 + (cores > 1)]:
                _wait_for(device)
                start = time.perf_counter()
                if apart:
                    list(pool.map(torch.nn.functional.linear, [states] * cores, [weight] * cores))
                else:
                    torch.nn.functional.linear(states, weight)
                _wait_for(device)
                done = 2.0 * math.prod(shape) * (cores if apart else 1)
                speeds.setdefault((apart, *shape), []).append(done / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return max(float(np.median(each)) for each in speeds.values())


def _wait_for(device: torch.device) -> None:
    """What was asked of an accelerator is done when this returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spent(reader: ResidualReader, sequences: list[list[int]], seconds: float) -> str:
    """Where the engine's time goes: how many tokens it has to run, and its share in products with weights.

    Args:
        reader: the engine.
        sequences: token ids of each prompt.
        seconds: what the engine takes for the prompts, of which an accelerator is busy for a part.
    """
    given = sum(map(len, sequences))
    said = f"{100 * distinct_tokens(sequences) / given:.0f} % of the prompts' {given} tokens have to be run"
    on_cpu = device_type(reader.chat_model) == "cpu"
    some = _given(competitors.transformers, sequences) if on_cpu else sequences
    with torch.profiler.profile() as profiled:
        for rows in reader.batches(some, reader.batch_tokens):
            reader.read_last([some[row] for row in rows])
    operations = [event for event in profiled.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
    time_of = "self_cpu_time_total" if on_cpu else "self_device_time_total"
    spent = {event.key: getattr(event, time_of) for event in operations}
    busy = sum(spent.values())
    products = 100 * sum(spent.get(name, 0) for name in ("aten::mm", "aten::addmm", "aten::bmm")) / busy
    if on_cpu:
        return f"{said}, {products:.0f} % of its time matrix products (one batch at a time)"
    attention = 100 * sum(part for name, part in spent.items() if "attention" in name) / busy
    return (
        f"{said}; the device is busy {100 * busy / 1e6 / seconds:.0f} % of the time, {products:.0f} % of that matrix "
        f"products and {attention:.0f} % attention"
    )


def _matrices(module: torch.nn.Module) -> list[tuple[int, int]]:
    """The shapes of its weights; GPT-2 keeps some in modules that are no ``torch.nn.Linear``."""
    return [(p.shape[0], p.shape[1]) for p in module.parameters() if p.ndim == 2]


def _weights(module: torch.nn.Module) -> int:
    """How many weights a token is multiplied with."""
    return sum(map(math.prod, _matrices(module)))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max())

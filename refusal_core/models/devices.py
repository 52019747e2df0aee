"""Which device to compute on, and in which dtype, decided by asking the machine."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING

from refusal_core.errors import ModelError
from refusal_core.options import DTYPES

if TYPE_CHECKING:
    import torch

SPREAD = "spread"
"""The device of a model that is larger than one: its blocks lie on all accelerators, in memory and on disk."""
_WORTHWHILE_SPEEDUP = 1.5


def choose_device(device: str = "auto") -> str:
    """The device to use: the one asked for, or for "auto" the first there is of CUDA, MPS and the CPU.

    "spread" stays what it is: where each block goes is decided when the model is opened.

    Raises ModelError when the device asked for is not there.
    """
    import torch

    available = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available += ["mps"] if torch.backends.mps.is_available() else []
    available += ["cpu"]
    if device == "auto":
        return available[0]
    if device == SPREAD:
        return SPREAD
    wanted = "cuda:0" if device == "cuda" else device
    if wanted not in available:
        raise ModelError(f"There is no device {device!r} here; there is {', '.join([*available, SPREAD])}.")
    return wanted


def choose_dtype(device: str, dtype: str = "auto") -> str:
    """The dtype to compute in: the one asked for, or for "auto" the one that is fast on this device.

    CUDA: bfloat16 where the hardware has it, else float16. MPS: bfloat16 where it runs, else float32, because
    float16 overflows in the residual stream of some models. CPU: bfloat16 where a timed product is at least
    1.5 times faster than in float32, else float32.

    Raises ModelError for a dtype that is none of float32, bfloat16 and float16.
    """
    import torch

    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise ModelError(f"The dtype {dtype!r} is unknown; choose auto, {', '.join(DTYPES)}.")
    if device == SPREAD:
        return choose_dtype(choose_device())
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "bfloat16" if _runs_bfloat16(device) else "float32"
    return "bfloat16" if _bfloat16_speedup() >= _WORTHWHILE_SPEEDUP else "float32"


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name such as "bfloat16"."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def _runs_bfloat16(device: str) -> bool:
    import torch

    try:
        ones = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
        return bool((ones @ ones).sum().item() == 512)
    except (RuntimeError, TypeError):
        return False


@lru_cache(maxsize=1)
def _bfloat16_speedup() -> float:
    """How many times faster the CPU multiplies in bfloat16 than in float32."""
    import torch

    # The small product comes first: a CPU without bfloat16 instructions takes seconds for the larger one.
    if _product_seconds(torch.float32, 64, 512) * 4 < _product_seconds(torch.bfloat16, 64, 512):
        return 0.0
    return _product_seconds(torch.float32, 256, 1024) / _product_seconds(torch.bfloat16, 256, 1024)


def _product_seconds(dtype: torch.dtype, rows: int, width: int, rounds: int = 5) -> float:
    """Seconds of the fastest of a few products (rows, width) @ (width, width), after one to warm up."""
    import torch

    left, right = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    left @ right
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return min(seconds)

"""Which device to compute on, and in which dtype, decided by asking the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refusal_core.errors import ModelError
from refusal_core.options import DTYPES

if TYPE_CHECKING:
    import torch

SPREAD = "spread"
"""The device of a model that is larger than one: its blocks lie on all accelerators, in memory and on disk."""
_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""The capabilities of a CPU that multiplies bfloat16 itself: x86 with AVX-512 or AMX, and Arm with or without SVE."""


def choose_device(device: str = "auto") -> str:
    """Return the device to use: the one asked for, or for "auto" the first that is available of CUDA, MPS and the CPU.

    "spread" stays what it is: where each block goes is decided when the model is opened.

    Raises:
        ModelError: when the device asked for is not there.
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
    """Return the dtype to compute in: the one asked for, or for "auto" the one that is fast on this device.

    CUDA: bfloat16 where the hardware has it, else float16. MPS: bfloat16 where it runs, else float32, because float16
    overflows in the residual stream of some models. CPU: bfloat16 where it has instructions for it, else float32.
    What the device can do decides, and never a measured time: the dtype is part of what a run is, and a busy machine
    must not change it.

    Raises:
        ModelError: for a dtype that is none of float32, bfloat16 and float16.
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
    return "bfloat16" if _cpu_multiplies_bfloat16() else "float32"


def torch_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype of a name such as "bfloat16"."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def _runs_bfloat16(device: str) -> bool:
    import torch

    try:
        ones = torch.ones(8, 8, dtype=torch.bfloat16, device=device)
        return bool((ones @ ones).sum().item() == 512)
    except (RuntimeError, TypeError):
        return False


def _cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16 and this build of torch a library that uses them.

    Without them a product takes many times longer than in float32: on a CPU with AVX2 alone, 200 times.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(capabilities.get(name) for name in _BFLOAT16_INSTRUCTIONS)

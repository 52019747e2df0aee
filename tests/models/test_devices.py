"""Which device and dtype are chosen."""

from __future__ import annotations

import pytest
import torch

from refusal_core.errors import ModelError
from refusal_core.models import devices


def test_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'cuda:99'.*cpu"):
        devices.choose_device("cuda:99")
    assert devices.choose_device("cpu") == "cpu"


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match=r"int8.*bfloat16"):
        devices.choose_dtype("cpu", "int8")
    assert devices.choose_dtype("cpu", "float16") == "float16"


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_cuda_dtype_asks_the_hardware(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert devices.choose_dtype("cuda:0") == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": False}, "float32"),
        (
            {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False},
            "float32",
        ),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": True}, "bfloat16"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_tile": True, "amx_bf16": True}, "bfloat16"),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, "bfloat16"),
        ({"architecture": "aarch64", "neon": True, "sve": True, "sve_bf16": True, "bf16": False}, "bfloat16"),
        ({"architecture": "aarch64", "neon": True, "bf16": False, "sve_max_length": 256}, "float32"),
        ({}, "float32"),
    ],
)
def test_cpu_dtype_is_chosen_by_the_instructions_it_has(
    capabilities: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    for _ in range(2):
        assert devices.choose_dtype("cpu") == expected
    # Instructions that no library uses are none.
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert devices.choose_dtype("cpu") == "float32"


def test_the_capabilities_that_are_asked_for_are_those_that_torch_names() -> None:
    """What a CPU can do is documented by name; a name that torch does not use would never be found."""
    for name in devices._BFLOAT16_INSTRUCTIONS:
        assert f" {name}" in str(torch.cpu.get_capabilities.__doc__)


def test_no_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.Tensor.__matmul__", None)
    assert devices.choose_dtype("cpu") in devices.DTYPES


def test_mps_dtype_is_bfloat16_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for runs, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(devices, "_runs_bfloat16", lambda device, runs=runs: runs)
        assert devices.choose_dtype("mps") == expected

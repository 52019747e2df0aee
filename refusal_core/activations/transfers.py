"""Copies between the CPU and an accelerator that do not make either wait."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def to_device(values: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Copy values to a device; on a GPU they arrive behind what it has to do, and nobody waits for it."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> Callable[[], list[np.ndarray]]:
    """Start copying values to the CPU; the function returned waits for them and returns them.

    From a GPU they come through memory that is pinned and used again, which is many times faster.
    """
    copies = [values.to("cpu", non_blocking=values.is_cuda) for values in tensors]
    events = [torch.cuda.current_stream(values.device).record_event() for values in tensors if values.is_cuda]

    def wait() -> list[np.ndarray]:
        for event in events:
            event.synchronize()
        return [values.numpy() for values in copies]

    return wait

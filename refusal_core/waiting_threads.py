"""How threads that share a computation wait for each other."""

from __future__ import annotations

import os


def sleep_while_waiting() -> None:
    """Have OpenMP's threads sleep while they wait for each other, unless the environment says otherwise.

    By default they spin, for which each takes a core from whatever else runs there, the thread they wait for included:
    with other programs on two cores a prompt of seven tokens takes three to four times as long. To be called before
    PyTorch is imported, by programs of this package: the environment of a process that imports it is its owner's.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

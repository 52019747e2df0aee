"""A dictionary that holds the newest so many of its entries, for what visitors add to as long as they stay."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Newest(dict[K, V]):
    """A dictionary of limited size: an entry too many removes the one that was first added."""

    def __init__(self, most: int) -> None:
        """Begin empty, for at most so many entries."""
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        """Add an entry, or replace its value."""
        super().__setitem__(key, value)
        while len(self) > self._most:
            del self[next(iter(self))]

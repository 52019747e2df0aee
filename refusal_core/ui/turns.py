"""Turns at something that serves one at a time: whoever asked first goes first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock that is given in the order in which it was asked for. A ``threading.Lock`` promises no order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[object] = deque()

    @contextmanager
    def turn(self, waiting: Callable[[int], object] = lambda before: None, every: float = 0.2) -> Iterator[None]:
        """Wait for one's turn and hold it for the length of the ``with`` block.

        Args:
            waiting: called every so often while others go first, with how many they are; what it raises gives the
                place in the queue up.
            every: seconds between its calls.
        """
        ticket = object()
        with self._changed:
            self._tickets.append(ticket)
        try:
            while before := self._before(ticket, every):
                waiting(before)
            yield
        finally:
            with self._changed:
                self._tickets.remove(ticket)
                self._changed.notify_all()

    def _before(self, ticket: object, seconds: float) -> int:
        """How many go first, after a wait of at most so many seconds for there to be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets[0] is ticket, seconds)
            return self._tickets.index(ticket)

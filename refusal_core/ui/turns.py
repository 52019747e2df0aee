"""A lock that serves in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """A lock that is acquired in order of arrival, which ``threading.Lock`` does not promise."""

    def __init__(self) -> None:
        """Begin free."""
        self._changed = threading.Condition()
        self._tickets: deque[object] = deque()

    @contextmanager
    def turn(self, waiting: Callable[[int], object] = lambda before: None, every: float = 0.2) -> Iterator[None]:
        """Wait for a turn and hold it during the ``with`` block.

        Args:
            waiting: called repeatedly with the number of earlier arrivals; an exception from it leaves the queue.
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
        """Return the number of earlier arrivals, after waiting at most so many seconds for none."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets[0] is ticket, seconds)
            return self._tickets.index(ticket)

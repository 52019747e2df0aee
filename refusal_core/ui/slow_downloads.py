"""Downloads that take seconds to make, of which those who may only look have a few made at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from refusal_core.errors import RefusalError
from refusal_core.ui.server import may_change
from refusal_core.ui.streamlit_internals import visit

MOST_AT_ONCE, MOST_OF_ONE = 4, 2
"""Downloads that are made at once for all who may only look, and for one visit of theirs. Streamlit makes all downloads
in threads of its own, of which there are five or more."""

_making: Counter[str] = Counter()
_counting = threading.Lock()


def limited(make: Callable[[], bytes]) -> Callable[[], bytes]:
    """Return what makes a download for the visitor of this page, within the limits of who may only look.

    Args:
        make: what makes it; of the owner's as many are made as are asked for.
    """
    return make if may_change() else _limited(make, visit())


def _limited(make: Callable[[], bytes], of: str) -> Callable[[], bytes]:
    def made() -> bytes:
        with _counting:
            if _making[of] >= MOST_OF_ONE or _making.total() >= MOST_AT_ONCE:
                raise RefusalError("as many downloads are being made as may be: try again when one of them is there")
            _making[of] += 1
        try:
            return make()
        finally:
            with _counting:
                _making[of] -= 1
                if not _making[of]:
                    del _making[of]

    return made

"""Who asks for many downloads at once leaves the server time to make those of others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from refusal_core.errors import RefusalError
from refusal_core.ui import slow_downloads
from refusal_core.ui.slow_downloads import MOST_AT_ONCE, MOST_OF_ONE, limited


def test_a_visit_has_so_many_downloads_made_at_once_and_all_visits_too_and_the_owner_more(monkeypatch):
    begun, ended = threading.Semaphore(0), threading.Event()

    def comes(visit: str, is_owner: bool = False) -> None:
        monkeypatch.setattr(slow_downloads, "may_change", lambda: is_owner)
        monkeypatch.setattr(slow_downloads, "visit", lambda: visit)

    def make() -> bytes:
        begun.release()
        assert ended.wait(20)
        return b"made"

    with ThreadPoolExecutor() as pool:
        making = []
        for visit in ("a", "b"):
            comes(visit)
            for _ in range(MOST_OF_ONE):
                making.append(pool.submit(limited(make)))
                assert begun.acquire(timeout=20)
            with pytest.raises(RefusalError, match="try again"):
                limited(lambda: b"small")()
        assert len(making) == MOST_AT_ONCE
        comes("c")
        with pytest.raises(RefusalError, match="try again"):
            limited(lambda: b"small")()
        comes("c", is_owner=True)
        assert limited(lambda: b"small")() == b"small"
        ended.set()
        assert [each.result() for each in making] == [b"made"] * MOST_AT_ONCE
    comes("a")
    assert limited(lambda: b"small")() == b"small"


def test_a_download_that_fails_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(slow_downloads, "may_change", lambda: False)
    for _ in range(MOST_AT_ONCE + 1):
        with pytest.raises(ZeroDivisionError):
            limited(lambda: bytes(1 // 0))()

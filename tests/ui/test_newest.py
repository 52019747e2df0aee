"""What visitors add to as long as they stay is limited."""

from __future__ import annotations

from refusal_core.ui.newest import Newest


def test_the_newest_entries_stay_and_no_more():
    known: Newest[str, int] = Newest(3)
    for place, name in enumerate("abcdbe"):
        known[name] = place
    assert known == {"c": 2, "d": 3, "e": 5}
    known["d"] = 9
    assert known == {"c": 2, "d": 9, "e": 5}

"""First come, first served; who gives up waiting holds nobody back."""

from __future__ import annotations

import threading
import time

import pytest

from refusal_core.ui.turns import Turns


def queue_up(turns: Turns, ask, count: int) -> list[threading.Thread]:
    """So many threads that ask for a turn one after another, in this order."""
    threads = []
    for place in range(count):
        before = len(turns._tickets)
        threads.append(threading.Thread(target=ask, args=(place,)))
        threads[-1].start()
        while len(turns._tickets) == before:
            time.sleep(0.001)
    return threads


def test_turns_are_given_in_the_order_asked_for_and_one_at_a_time():
    turns, served, inside = Turns(), [], []

    def ask(place: int) -> None:
        with turns.turn():
            inside.append(place)
            assert inside == [place]
            time.sleep(0.002)
            served.append(inside.pop())

    with turns.turn():
        threads = queue_up(turns, ask, 20)
        assert not served
    for thread in threads:
        thread.join(10)
    assert served == list(range(20))


def test_one_who_asks_over_and_over_waits_behind_all_who_asked_before():
    turns, served = Turns(), []

    def once(place: int) -> None:
        with turns.turn():
            served.append(place)

    with turns.turn():
        threads = queue_up(turns, once, 3)
    for _ in range(3):
        with turns.turn():
            served.append("again")
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, "again", "again", "again"]


def test_the_waiting_hear_how_many_go_first_and_who_gives_up_holds_nobody_back():
    turns, heard, served = Turns(), [], []

    class GivesUp(Exception):
        pass

    def impatient(before: int) -> None:
        heard.append(before)
        raise GivesUp

    def ask(place: int) -> None:
        if place == 1:
            with pytest.raises(GivesUp), turns.turn(impatient, every=0.01):
                served.append(place)
            return
        with turns.turn(every=0.01):
            served.append(place)

    with turns.turn():
        threads = queue_up(turns, ask, 1)
        threads += [threading.Thread(target=ask, args=(1,))]
        threads[-1].start()
        threads[-1].join(10)
        threads += queue_up(turns, lambda place: ask(place + 2), 1)
    for thread in threads:
        thread.join(10)
    assert heard == [2]
    assert served == [0, 2]


def test_a_turn_that_fails_is_passed_on():
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.turn():
        raise ValueError("broken")
    with turns.turn(lambda before: pytest.fail("nobody goes first")):
        pass

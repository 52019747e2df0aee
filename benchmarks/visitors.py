"""Many visitors of one server at the same time: how long they wait, what the server holds, and what they see of others.

Each has a WebSocket of its own, as a browser has, and types prompts that bear a mark of its own; everything that the
server sends is searched for the marks of others. Visitors leave after some prompts, and new ones come in their place.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from benchmarks.rounds import Bench, Row
from benchmarks.serving import ROOT, served
from refusal_core.access.guard import cookie_name
from refusal_core.access.settings import Access

SECTION = "visitors"
_LIVE = "Live_score"
_MARK = re.compile(rb"mark[0-9a-f]{16}")
_WORDS = ("how", "do", "I", "write", "a", "letter", "that", "opens", "the", "door", "and", "thanks", "my", "neighbour")
_SECONDS_BETWEEN_KEYS, _SECONDS_TO_READ = (0.5, 1.5), (2.0, 10.0)
_STEPS, _PROMPTS_OF_A_SESSION, _PAGES_BETWEEN = 3, 12, 2
_PATIENCE = 120.0
_SAMPLES = 10


@dataclass
class _Seen:
    """What happened to all visitors.

    Attributes:
        answers: seconds from the last key of a prompt to the line that names it as scored.
        pages: seconds from a click to the end of a page.
        own: how many messages had a mark of whom they were sent to.
        foreign: how many had a mark of somebody else.
        failed: what went wrong, in words.
        held: of the server, at several times: minutes, megabytes, open files, threads.
    """

    answers: list[float] = field(default_factory=list)
    pages: list[float] = field(default_factory=list)
    own: int = 0
    foreign: int = 0
    failed: list[str] = field(default_factory=list)
    held: list[tuple[float, float, int, int]] = field(default_factory=list)


def rows(bench: Bench) -> list[Row]:
    """Seconds to wait, what the server holds over the minutes, and texts of others that somebody saw."""
    seen = _Seen()
    run = next((ROOT / "cache").glob(f"{bench.chat_model.info.name}--pairs--*"))
    with served(run) as (port, process, access):
        asyncio.run(_visit(bench, port, process, access, seen))
    if not seen.answers:
        raise RuntimeError(f"nobody got an answer: {seen.failed[:3]}")
    name = f"{bench.visitors} visitors, {bench.minutes:g} minutes"
    found = []
    for what, seconds in (("a prompt is answered", seen.answers), ("a page is drawn", seen.pages)):
        for percent in (50, 95) if seconds else ():
            value = float(np.percentile(seconds, percent))
            found.append(Row(SECTION, f"{name}: {what}, p{percent}", "no limit", [value], "s", f"of {len(seconds)}"))
    for place, (what, unit) in enumerate((("memory", "MB"), ("open files", ""), ("threads", "")), start=1):
        values = [float(sample[place]) for sample in seen.held]
        course = ", ".join(f"{value:.0f}" for value in values)
        found.append(Row(SECTION, f"{name}: {what}", "flat", values, unit, f"over time: {course}"))
    note = f"{seen.own} messages with one's own"
    found.append(Row(SECTION, f"{name}: messages with another's text", "0", [float(seen.foreign)], "", note))
    found.append(Row(SECTION, f"{name}: failures", "0", [float(len(seen.failed))], "", "; ".join(seen.failed[:3])))
    return found


async def _visit(bench: Bench, port: int, process: psutil.Process, access: Access, seen: _Seen) -> None:
    began = time.monotonic()
    end = began + 60 * bench.minutes
    visitors = [
        asyncio.create_task(_visitor(bench, number, port, access, end, seen)) for number in range(bench.visitors)
    ]
    for sample in range(_SAMPLES + 1):
        await asyncio.sleep(max(0.0, began + 60 * bench.minutes * sample / _SAMPLES - time.monotonic()))
        with process.oneshot():
            held = process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()
        seen.held.append(((time.monotonic() - began) / 60, *held))
    await asyncio.gather(*visitors)


async def _visitor(bench: Bench, number: int, port: int, access: Access, end: float, seen: _Seen) -> None:
    """Come and go until the time is over."""
    chance = random.Random(number)
    await asyncio.sleep(chance.uniform(0, min(20.0, 6 * bench.minutes)))
    while time.monotonic() < end:
        try:
            async with _session(port, access, seen) as session:
                await session.open(_LIVE)
                for _ in range(_PROMPTS_OF_A_SESSION):
                    if time.monotonic() >= end:
                        break
                    await session.type_prompt(chance)
                    for page in chance.sample(sorted(session.pages), _PAGES_BETWEEN) if bench.roam else ():
                        seen.pages.append(await session.open(page))
                        await asyncio.sleep(chance.uniform(*_SECONDS_TO_READ))
                    if bench.roam:
                        await session.open(_LIVE)
        except (TimeoutError, OSError, WebSocketException) as error:
            seen.failed.append(f"{type(error).__name__}: {error}"[:200])
            await asyncio.sleep(1.0)


class _Session:
    """One visitor's tab.

    Attributes:
        pages: the addresses of the pages, and the names that Streamlit has for their scripts.
    """

    def __init__(self, socket: ClientConnection, seen: _Seen) -> None:
        self._socket, self._seen = socket, seen
        self.mark = f"mark{secrets.token_hex(8)}"
        self.pages: dict[str, str] = {}
        self._place, self._page, self._field, self._text = "", "", "", ""

    async def open(self, page: str) -> float:
        """Go to a page; returns the seconds until it was drawn."""
        if not self.pages:
            await self._ask("")
            await self._until(None)
        self._place, self._page, self._field, self._text = page, self.pages[page], "", ""
        began = time.monotonic()
        await self._ask(self._page)
        await self._until(None)
        return time.monotonic() - began

    async def type_prompt(self, chance: random.Random) -> None:
        """Type a prompt in steps, wait for its answer and read it."""
        words = [self.mark, *chance.choices(_WORDS, k=chance.randint(6, 10))]
        cuts = sorted(chance.sample(range(2, len(words)), _STEPS))
        for cut in [*cuts, len(words)]:
            self._text = " ".join(words[:cut])
            began = time.monotonic()
            await self._ask(self._page)
            if cut < len(words):
                await asyncio.sleep(chance.uniform(*_SECONDS_BETWEEN_KEYS))
        await self._until(f"Scored: {self._text}")
        self._seen.answers.append(time.monotonic() - began)
        await self._until(None)
        await asyncio.sleep(chance.uniform(*_SECONDS_TO_READ))

    async def _ask(self, page: str) -> None:
        asked = BackMsg()
        asked.rerun_script.page_script_hash = page
        if self._field:
            state = asked.rerun_script.widget_states.widgets.add()
            state.id, state.string_value = self._field, self._text
        await self._socket.send(asked.SerializeToString())

    async def _until(self, text: str | None) -> None:
        """Read what is sent until a text comes, or without one until a script has ended that nothing cut short."""
        end = time.monotonic() + _PATIENCE
        while (left := end - time.monotonic()) > 0:
            try:
                raw = await asyncio.wait_for(self._socket.recv(decode=False), left)
            except TimeoutError:
                break
            marks = set(_MARK.findall(raw))
            self._seen.own += self.mark.encode() in marks
            self._seen.foreign += bool(marks - {self.mark.encode()})
            message = ForwardMsg.FromString(raw)
            self._learn(message)
            if message.delta.new_element.text.body == text:
                return
            ended = text is None and message.WhichOneof("type") == "script_finished"
            # What was cut short begins anew.
            if ended and message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                return
        raise TimeoutError(f"{self._place}: not within {_PATIENCE:.0f} seconds: {text or 'the end'}")

    def _learn(self, message: ForwardMsg) -> None:
        """Note the pages, and the field for a prompt."""
        if message.HasField("navigation"):
            pages = {page.url_pathname: page.page_script_hash for page in message.navigation.app_pages}
            self.pages = {name: script for name, script in pages.items() if name}
        element = message.delta.new_element
        if message.HasField("delta") and element.HasField("text_input") and element.text_input.label == "Prompt":
            self._field = element.text_input.id


@asynccontextmanager
async def _session(port: int, access: Access, seen: _Seen) -> AsyncIterator[_Session]:
    host = f"127.0.0.1:{port}"
    cookie = f"{cookie_name(host, 'http')}={access.cookie('viewer')}"
    async with connect(
        f"ws://{host}/_stcore/stream", additional_headers={"Cookie": cookie}, max_size=None, open_timeout=_PATIENCE
    ) as opened:
        yield _Session(opened, seen)

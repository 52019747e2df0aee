"""Reading what strangers send in a process of its own, with limits: what it takes there, the caller does not lose.

The process is given the name of a function of this package, its arguments and the file that was sent, and answers with
what the function returned; all of that is JSON, in the types that the function is annotated with.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeAlias, TypeVar, get_type_hints

from pydantic import ConfigDict, PlainSerializer, PlainValidator, TypeAdapter

from refusal_core import errors
from refusal_core.errors import RefusalError

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

_ROOT = Path(__file__).resolve().parents[1]
_AT_ONCE, _LARGE_AT_ONCE, _ONLINE_AT_ONCE = map(threading.BoundedSemaphore, (2, 1, 2))
"""How many are read at once, since each may take all of its limit. Files wait neither for what is downloaded nor for
whole runs."""
_SECONDS_TO_WAIT = 60.0
_LARGEST_ANSWER = 200_000_000
_TOO_MUCH = "reading this file took more memory or time than it may; nothing was changed"


class BusyError(RefusalError):
    """As many files are being read as may be. It says nothing of the file, which may be read the next time."""


@dataclass(frozen=True)
class Limits:
    """What such a process may take.

    Attributes:
        memory: bytes of addresses; what its libraries reserve counts.
        cpu_seconds: of the processor.
        seconds: until it is ended.
    """

    memory: int
    cpu_seconds: int
    seconds: int


READING = Limits(6 * 2**30, 60, 600)
"""For prompts and annotations, of which the readers take much less; the rest is what libraries reserve."""
LARGE = Limits(12 * 2**30, 600, 1200)
"""For whole runs, and for what needs a model library."""


def in_child(
    function: Callable[..., T],
    *arguments: object,
    sent: tuple[str, bytes] | None = None,
    limits: Limits = READING,
    online: bool = False,
) -> T:
    """Call a function of this package in a process of its own.

    Args:
        function: with annotations that pydantic knows.
        arguments: of the function, after the file that was sent.
        sent: name and content of a file, which the function gets first, as an open file with that name.
        limits: of the process.
        online: whether it may wait for the hub.

    Raises:
        BusyError: when others take too long for it to begin.
        RefusalError: what the function raised, of the same kind; or that it takes too much to be read.
    """
    name, content = sent or (None, b"")
    request = {
        "function": (function.__module__, function.__qualname__),
        "arguments": [TypeAdapter(type(argument)).dump_python(argument, mode="json") for argument in arguments],
        "sent": name,
        "limits": (limits.memory, limits.cpu_seconds),
    }
    at_once = _ONLINE_AT_ONCE if online else _LARGE_AT_ONCE if limits == LARGE else _AT_ONCE
    answer = _ask(json.dumps(request).encode() + b"\n" + content, limits.seconds, at_once)
    if "error" in answer:
        raise getattr(errors, str(answer["kind"]))(answer["error"])
    result: T = _adapter(_hints(function)["return"]).validate_python(answer["result"])
    return result


def _ask(request: bytes, seconds: int, at_once: threading.BoundedSemaphore) -> dict[str, Any]:
    """Return what the process answers."""
    if not at_once.acquire(timeout=_SECONDS_TO_WAIT):
        raise BusyError("others are reading large files at the moment; nothing was changed, try again in a minute")
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", __name__],
            env=_environment(os.environ),
            input=request,
            stdout=subprocess.PIPE,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RefusalError("reading this file took too long; nothing was changed") from None
    finally:
        at_once.release()
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        raise RefusalError(_TOO_MUCH) from None
    return dict(answer)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the process: one thread, whose buffers are few, and not the token."""
    paths = [str(_ROOT), *filter(None, [given.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    rest = {name: value for name, value in given.items() if name != "REFUSAL_TOKEN"}
    return rest | threads | {"PYTHONPATH": os.pathsep.join(paths)}


def _dump_table(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "columns": [str(name) for name in table.columns],
        "dtypes": [str(dtype) for dtype in table.dtypes],
        "cells": [table.iloc[:, place].astype(object).tolist() for place in range(table.shape[1])],
    }


def _load_table(dumped: Any) -> pd.DataFrame:
    import pandas as pd

    if isinstance(dumped, pd.DataFrame):
        return dumped
    columns = zip(dumped["cells"], dumped["dtypes"], strict=True)
    table = pd.DataFrame({place: pd.Series(cells, dtype=dtype) for place, (cells, dtype) in enumerate(columns)})
    return table.set_axis(dumped["columns"], axis=1)


if TYPE_CHECKING:
    Table: TypeAlias = pd.DataFrame
else:
    Table = Annotated[Any, PlainSerializer(_dump_table), PlainValidator(_load_table)]
    """A table, as a field of what a process returns."""


class _SentFile(io.BytesIO):
    """A file that was sent, under its name."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name


def _adapter(kind: Any) -> TypeAdapter[Any]:
    # Alternatives may name open files, which are never made from JSON; a class says itself what it is made from.
    return TypeAdapter(kind, config=None if isinstance(kind, type) else ConfigDict(arbitrary_types_allowed=True))


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return get_type_hints(function, include_extras=True)


def end_first_without_memory(pid: int, score: int) -> None:
    """Have the system end a process of this user before others when the machine has no memory left, on Linux.

    Args:
        pid: of the process.
        score: up to 1000; the server has 0.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score), encoding="ascii")


def _limit(memory: int, cpu_seconds: int) -> None:
    end_first_without_memory(os.getpid(), 1000)
    if sys.platform == "win32":
        return
    import resource

    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_CORE, 0)):
        # Nobody may raise a limit that is set already, and a system need not take each of these.
        with contextlib.suppress(OSError, ValueError):
            _, hard = resource.getrlimit(limit)
            lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (lower, lower))


def _answer(request: dict[str, Any], content: BinaryIO) -> dict[str, Any]:
    """Call the function that was asked for."""
    try:
        module, name = request["function"]
        function = getattr(import_module(module), name)
        hints = _hints(function)
        result_type = hints.pop("return")
        types = list(hints.values())
        given: list[Any] = []
        if request["sent"] is not None:
            given.append(_SentFile(request["sent"], content.read()))
        for argument in request["arguments"]:
            given.append(_adapter(types[len(given)]).validate_python(argument))
        return {"result": _adapter(result_type).dump_python(function(*given))}
    except RefusalError as error:
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        return {"kind": kind.__name__, "error": str(error)}
    except MemoryError:
        return {"kind": RefusalError.__name__, "error": _TOO_MUCH}
    except Exception as error:  # nobody foresaw it
        from refusal_core.error_log import log_failure

        failure = log_failure(error)
        return {"kind": RefusalError.__name__, "error": f"{failure.what} (reference {failure.reference})"}


def _main() -> None:
    """Answer one request."""
    out = os.fdopen(os.dup(1), "wb")
    # What libraries print is no part of the answer.
    os.dup2(2, 1)
    request = json.loads(sys.stdin.buffer.readline())
    _limit(*request["limits"])
    answer = _answer(request, sys.stdin.buffer)
    # Half a character cannot be written, and need not be.
    encoded = json.dumps(answer, ensure_ascii=False, default=str).encode("utf-8", "replace")
    if len(encoded) > _LARGEST_ANSWER:
        encoded = json.dumps({"kind": RefusalError.__name__, "error": _TOO_MUCH}).encode()
    out.write(encoded)
    out.close()


if __name__ == "__main__":
    _main()

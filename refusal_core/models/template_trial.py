"""Rendering a chat template in a process of its own, with little memory and time.

A template is a stranger's program. jinja's sandbox keeps it from reaching anything, but not from filling the memory or
running for ever, so before it is rendered where a model is open it is tried out here: this file is run as a script, by
:func:`require_bounded`, and imports nothing of this package and no model library.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import lru_cache
from typing import Any

_BYTES = 1 << 29
_CPU_SECONDS = 5
_WALL_SECONDS = 120
"""A busy machine may take long to give a process its processor time."""
_CHARACTERS = 1 << 20
"""Most that is rendered around the samples, a few hundred characters long."""
_TOO_MUCH_MEMORY, _TOO_LONG = 3, 4
_SAMPLES = ("zqxuserqxz", "One line of a prompt.\n" * 8)


@lru_cache(maxsize=64)
def require_bounded(template: str) -> None:
    """Try a chat template out on samples.

    Raises:
        ValueError: saying in words what it needs too much of.
    """
    command = [sys.executable, "-I", __file__]
    try:
        trial = subprocess.run(
            command, input=template.encode(), capture_output=True, timeout=_WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it does not end within {_WALL_SECONDS} seconds") from None
    except UnicodeEncodeError:
        raise ValueError("it is not text in UTF-8") from None
    if trial.returncode in (_TOO_MUCH_MEMORY, -signal.SIGSEGV):
        raise ValueError(f"it needs more than {_BYTES >> 20} MiB of memory")
    if trial.returncode == _TOO_LONG:
        raise ValueError(f"it writes more than {_CHARACTERS:,} characters around a short prompt")
    if trial.returncode < 0:  # killed: by its own limit of processor time
        raise ValueError(f"it does not end within {_CPU_SECONDS} seconds")


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows, where the time alone is limited
        return
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _environment() -> Any:
    """Return what chat templates are rendered with, as transformers has it."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

        def _written(self, caller: Any) -> Any:
            return caller()

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    return environment


def _try_out(template: str) -> int:
    """Render a template as it may be asked for; its own errors are told where it is rendered for a model."""
    try:
        compiled = _environment().from_string(template)
    except MemoryError:
        return _TOO_MUCH_MEMORY
    except Exception:
        return 0
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    for sample in _SAMPLES:
        for content in (sample, [{"type": "text", "text": sample}]):
            for roles in (("user",), ("system", "user"), ("user", "assistant")):
                messages = [{"role": role, "content": content} for role in roles]
                for switch in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                    try:
                        text = compiled.render(messages=messages, add_generation_prompt=True, **tokens, **switch)
                    except MemoryError:
                        return _TOO_MUCH_MEMORY
                    except Exception:
                        continue
                    if len(text) > _CHARACTERS:
                        return _TOO_LONG
    return 0


if __name__ == "__main__":
    _limit()
    sys.exit(_try_out(sys.stdin.buffer.read().decode()))

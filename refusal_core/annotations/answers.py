"""Files of people's answers, small tables about prompts that are known by their prompt_id or their text."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from refusal_core.errors import PromptError
from refusal_core.prompts.sets import PROMPT_ID, prompt_id

MOST_BYTES = 5_000_000
"""Largest file of ratings or marks that is read."""


def read_answers(source: str | Path | BinaryIO) -> tuple[bytes, str]:
    """Return what is in a file of answers, a path or one that is open, and the file's name.

    Raises:
        PromptError: when it cannot be read, or is larger than such files are.
    """
    if not isinstance(source, (str, Path)):
        source.seek(0)
        content, name = source.read(MOST_BYTES + 1), Path(getattr(source, "name", "uploaded.csv")).name
    else:
        path = Path(source).expanduser()
        name = path.name
        try:
            if not path.is_file():
                raise PromptError(f"cannot read {str(source)!r:.120}: expected a csv file, found none")
            with path.open("rb") as file:
                content = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no file can have that name"
            raise PromptError(f"cannot read {name!r:.120}: {why}") from error
    if len(content) > MOST_BYTES:
        raise PromptError(f"{name}: expected at most {MOST_BYTES / 1e6:.0f} MB, found more")
    return content, name


def identify_prompt(given: str, text: str, where: str) -> str:
    """Return the prompt_id of what a row of answers is about: ``given`` where that is one, else its text's.

    Raises:
        PromptError: when neither is there.
    """
    if PROMPT_ID.fullmatch(given.strip()):
        return given.strip()
    if text.strip():
        return prompt_id(text)
    raise PromptError(f"{where}: expected a prompt_id of twelve hexadecimal digits or a text, found {given!r:.60}")

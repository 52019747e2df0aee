"""From a prompt's text to the tokens the model reads: the chat template, applied and described."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_core.errors import ModelError, PromptError
from refusal_core.models.hub import download_chat_template
from refusal_core.models.known import KNOWN, is_fetched

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""How Qwen3, DeepSeek-R1, GLM and others mark the part of a reply in which the model thinks."""

_USER, _SYSTEM = "zqxuserqxz", "zqxsystemqxz"
_LONGEST_TEMPLATE = 1 << 18
_DATE_CODES = "aAbBcdHIjmMpSuUVwWxXyYG"


def render(
    tokenizer: Any,
    text: str,
    system_prompt: str | None = None,
    thinking: bool | None = None,
    day: str | None = None,
) -> list[int]:
    """Token ids of one prompt as the model expects it, up to where its reply begins.

    With a chat template: one user message and the generation prompt. The ids are those of
    `tokenizer.apply_chat_template`, except that control tokens written out in the prompt (`<|im_end|>`) stay
    ordinary text: a prompt is data and cannot end its own turn. Without a template (base models): the text
    with the tokenizer's own special tokens, usually one that begins a sequence.

    `tokenizer` is a tokenizer or a ChatModel. `system_prompt` None keeps what the template does by itself; ""
    means no system text, also where the template would put in its own. `thinking` is the template's
    `enable_thinking`; None keeps what the template does by itself. `day` (2026-01-31) is what a template that tells
    the model the date takes for today; None leaves it the real one.

    Raises PromptError for text that is not Unicode, and ModelError when a system prompt is given and the
    template, or the lack of one, has no place for it; see :func:`check_thinking` for `thinking`.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    for given in (text, system_prompt or ""):
        if any("\ud800" <= character <= "\udfff" for character in given):
            raise PromptError(f"expected text in UTF-8, got {given!r:.60}")
    if not has_chat_template(tokenizer):
        if system_prompt:
            raise ModelError("This model has no chat template, so it takes no system prompt: leave it out.")
        return list(tokenizer(text, split_special_tokens=True)["input_ids"])
    messages = _messages(tokenizer, text, system_prompt)
    switch = {} if thinking is None else {"enable_thinking": thinking}
    ids = _apply_template(
        tokenizer, messages, day, tokenize=True, return_dict=False, sanitize_control_tokens=True, **switch
    )
    return list(ids)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template; base models have none."""
    return bool(tokenizer.chat_template)


def default_system_prompt(tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> str | None:
    """The system text that the template puts in when none is given, or None when it puts in nothing."""
    if not has_chat_template(tokenizer) or not takes_system_prompt(tokenizer):
        return None
    given: str = _apply_template(tokenizer, [_message("system", _SYSTEM), _message("user", _USER)], day, tokenize=False)
    before, after = given.split(_SYSTEM, 1)
    plain: str = _apply_template(tokenizer, [_message("user", _USER)], day, tokenize=False)
    if len(plain) <= len(before) + len(after) or not plain.startswith(before) or not plain.endswith(after):
        return None
    return plain[len(before) : len(plain) - len(after)]


def takes_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template has a place for a system prompt; Gemma 1 and 2 raise an error, others drop it."""
    if not has_chat_template(tokenizer):
        return False
    try:
        return _SYSTEM in _apply_template(
            tokenizer, [_message("system", _SYSTEM), _message("user", _USER)], tokenize=False
        )
    except ModelError:
        return False


def tells_the_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template tells the model the date, so that its text is another one tomorrow."""
    if not has_chat_template(tokenizer):
        return False
    message = [_message("user", _USER)]
    days = ("2001-02-03", "2019-11-28")
    return len({_apply_template(tokenizer, message, day, tokenize=False) for day in days}) > 1


def borrow_template(source: str) -> str:
    """The text of a chat template that belongs to another model, for one that has none or a different one.

    `source` is a known name that is fetched, a hub id, a model's folder, or a file with the template itself. What it
    says is a stranger's program: transformers renders it in jinja's sandbox, where it reaches nothing but the prompt.

    Raises ModelError where there is none.
    """
    known, path = KNOWN.get(source), Path(os.path.expanduser(source))
    if known is not None:
        if not is_fetched(known):
            raise ModelError(
                f"{source} is not on this machine, so its template cannot be borrowed: fetch the model first."
            )
        text = _template_in(known.folder)
    elif os.path.isdir(path):
        text = _template_in(path)
    elif os.path.isfile(path):
        text = _read(path)
    elif source.count("/") == 1 and not source.endswith(".jinja"):
        text = _template_in(download_chat_template(source))
    else:
        raise ModelError(
            f"There is no template {source!r:.120}: expected a known name ({', '.join(KNOWN)}), a hub id, a model's "
            "folder, or a .jinja file."
        )
    if text is None:
        raise ModelError(f"{source} has no chat template to borrow; choose a model that was made to chat.")
    return text


def put_template(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Let a tokenizer use a borrowed template. Raises ModelError for one that does not render a prompt."""
    tokenizer.chat_template = text
    if _USER not in _rendered(tokenizer, None):
        raise ModelError("The borrowed chat template leaves the prompt out: it is none for one user message.")


def _template_in(folder: Path) -> str | None:
    """The default template of a tokenizer's folder, as transformers reads it."""
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja")
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return None
    try:
        found = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{settings} cannot be read ({error}), so its template cannot be borrowed.") from error
    if isinstance(found, list):
        found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST_TEMPLATE:
            raise ModelError(f"{path.name} is longer than any chat template ({_LONGEST_TEMPLATE // 1024} KiB).")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} cannot be read as a chat template ({error}).") from error


def check_thinking(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> None:
    """Raise ModelError when thinking is to be switched and the template has no switch for it."""
    if thinking is not None and not _has_thinking_switch(tokenizer):
        raise ModelError("This model's chat template cannot switch thinking on or off: leave that to the template.")


def reply_thinks(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> bool:
    """Whether a reply begins with the model's thinking: its template opens that, or leaves it to the model."""
    if not has_chat_template(tokenizer):
        return False
    rendered = _rendered(tokenizer, thinking)
    reply = rendered.rsplit(_USER, 1)[-1]
    if THINK_OPEN in reply:
        return THINK_CLOSE not in reply
    return rendered != _rendered(tokenizer, False)


def _has_thinking_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    return has_chat_template(tokenizer) and _rendered(tokenizer, True) != _rendered(tokenizer, False)


def _rendered(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> str:
    switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    return str(_apply_template(tokenizer, [_message("user", _USER)], tokenize=False, **switch))


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template's text, or None for a model without one."""
    if not has_chat_template(tokenizer):
        return None
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()


def _messages(tokenizer: PreTrainedTokenizerBase, text: str, system_prompt: str | None) -> list[dict[str, str]]:
    user = _message("user", text)
    if system_prompt is None or (system_prompt == "" and default_system_prompt(tokenizer) is None):
        return [user]
    if not takes_system_prompt(tokenizer):
        raise ModelError("This model's chat template has no system role, so it takes no system prompt: leave it out.")
    return [_message("system", system_prompt), user]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], day: str | None = None, **options: Any
) -> Any:
    if day is not None:
        options["chat_template"] = _on_day(tokenizer.get_chat_template(), date.fromisoformat(day))
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    except Exception as error:  # a template is a program of its own, and may fail in any way
        raise ModelError(f"The model's chat template refused the prompt: {error}") from error


def _on_day(template: str, day: date) -> str:
    """A template for which it is always the same day: its clock is hidden behind one that stands still."""
    if "strftime_now" not in template:
        return template
    parts = {f"%{code}": day.strftime(f"%{code}") for code in _DATE_CODES} | {
        "%-d": str(day.day),
        "%-m": str(day.month),
    }
    spelt = "format" + "".join(f" | replace({code!r}, {part!r})" for code, part in parts.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ {spelt} }}}}{{%- endmacro -%}}{template}"

"""From a prompt's text to the tokens the model reads: the chat template, applied and described."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_core.conversations import SYSTEM, Prompt, Turn, prefix_of, turns_of
from refusal_core.errors import ModelError, PromptError
from refusal_core.models.hub import download_chat_template
from refusal_core.models.known import KNOWN, is_fetched
from refusal_core.models.template_trial import require_bounded
from refusal_core.models.thinking import ThinkingMarks, marks_in
from refusal_core.models.transformers_internals import render_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER, _SYSTEM, _REPLY = "zqxuserqxz", "zqxsystemqxz", "zqxreplyqxz"
_DEFAULT = "default"
_EFFORT = "reasoning_effort"
_LONGEST_TEMPLATE = 1 << 18
_DATE_CODES = "aAbBcdHIjmMpSuUVwWxXyYG"


def render(
    tokenizer: Any,
    prompt: Prompt,
    system_prompt: str | None = None,
    thinking: bool | None = None,
    day: str | None = None,
    with_prefix: bool = False,
) -> list[int]:
    """Token ids of one prompt as the model expects it, up to where its reply begins.

    With a chat template: one user message, or the turns of a conversation, and the generation prompt. The ids are those
    of `tokenizer.apply_chat_template`, except that control tokens written out in the prompt (`<|im_end|>`) stay
    ordinary text: a prompt is data and cannot end its own turn. Without a template (base models): the text
    with the tokenizer's own special tokens, usually one that begins a sequence.

    `tokenizer` is a tokenizer or a ChatModel. `system_prompt` None keeps what the template does by itself; ""
    means no system text, also where the template would put in its own; a conversation that has a system message of its
    own keeps that. `thinking` is the template's `enable_thinking`; None keeps what the template does by itself. `day`
    (2026-01-31) is what a template that tells the model the date takes for today; None leaves it the real one.
    `with_prefix` puts behind it how a conversation makes the reply begin.

    Raises PromptError for text that is not Unicode, and ModelError when a system prompt or turns are given and the
    template, or the lack of one, has no place for them; see :func:`check_thinking` for `thinking`.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    turns = turns_of(prompt)
    for given in (*(turn.content for turn in turns), system_prompt or ""):
        if any("\ud800" <= character <= "\udfff" for character in given):
            raise PromptError(f"expected text in UTF-8, got {given!r:.60}")
    prefix = prefix_of(prompt)
    if prefix:
        turns = turns[:-1]
    behind = list(tokenizer(prefix, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    if not has_chat_template(tokenizer):
        if system_prompt or len(turns) > 1:
            what = "earlier turns" if any(turn.role != SYSTEM for turn in turns[:-1]) else "system prompt"
            raise ModelError(f"This model has no chat template, so it takes no {what}: leave it out.")
        return [*tokenizer(turns[0].content, split_special_tokens=True)["input_ids"], *(behind if with_prefix else ())]
    messages = _messages(tokenizer, turns, system_prompt)
    switched = thinking is not None and _has_thinking_switch(tokenizer)
    switch: dict[str, Any] = {"enable_thinking": thinking} if switched else {}
    ids = _apply_template(
        tokenizer, messages, day, tokenize=True, return_dict=False, sanitize_control_tokens=True, **switch
    )
    if closing := closed_thought(tokenizer, thinking):
        ids = [*ids, *tokenizer.encode(closing, add_special_tokens=False)]
    return [*ids, *(behind if with_prefix else ())]


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template; base models have none."""
    return bool(tokenizer.chat_template)


def check_template(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Check that a tokenizer's chat template, if it has one, renders a prompt and then opens the model's reply.

    Args:
        tokenizer: of the model.
        what: the template, as the message is to name it at its beginning.

    Raises:
        ModelError: saying what is wrong with the template and what to do.
    """
    template = tokenizer.chat_template
    if not template:
        return
    if isinstance(template, dict) and _DEFAULT not in template:
        raise ModelError(f"{what} is missing: {_named_templates(template)}")
    for text in template.values() if isinstance(template, dict) else (template,):
        try:
            require_bounded(text)
        except ValueError as error:
            raise ModelError(f"{what} cannot be rendered: {error}. Borrow another model's chat template.") from error
    prompt = _rendered(tokenizer, None)
    if _USER not in prompt:
        raise ModelError(
            f"{what} leaves the prompt out, given as text and as a list of parts. Borrow another model's chat template."
        )
    if not _opens_reply(tokenizer, prompt):
        raise ModelError(
            f"{what} does not open the model's reply: asked to, it ends after the user's turn all the same, where "
            "prompts would be read at the wrong token. Borrow another model's chat template."
        )


def _opens_reply(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Return whether a rendered prompt ends where the reply begins, as far as the template lets that be seen."""
    try:
        unopened = _apply_template(tokenizer, [_message(tokenizer, "user", _USER)], opens_reply=False, tokenize=False)
        turns = [_message(tokenizer, "user", _USER), _message(tokenizer, "assistant", _REPLY)]
        answered = str(_apply_template(tokenizer, turns, opens_reply=False, tokenize=False))
    except ModelError:
        return True
    before, found, _ = answered.partition(_REPLY)
    # Where asking changes nothing, the reply may follow the user's turn at once, as in Mistral's templates.
    return prompt != unopened or not found or _USER not in before or before.rstrip() == prompt.rstrip()


def _named_templates(names: Iterable[str]) -> str:
    listed = sorted(names)
    return (
        f"there are several, {', '.join(listed)}, and none is the default. Borrow one of them, as SOURCE#{listed[0]}, "
        "where SOURCE is the model's folder or hub id."
    )


def default_system_prompt(tokenizer: PreTrainedTokenizerBase, day: str | None = None) -> str | None:
    """The system text that the template puts in when none is given, or None when it puts in nothing."""
    if not has_chat_template(tokenizer) or not takes_system_prompt(tokenizer):
        return None
    user = _message(tokenizer, "user", _USER)
    given: str = _apply_template(tokenizer, [_message(tokenizer, "system", _SYSTEM), user], day, tokenize=False)
    before, after = given.split(_SYSTEM, 1)
    plain: str = _apply_template(tokenizer, [user], day, tokenize=False)
    if len(plain) <= len(before) + len(after) or not plain.startswith(before) or not plain.endswith(after):
        return None
    return plain[len(before) : len(plain) - len(after)]


def takes_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template has a place for a system prompt; Gemma 1 and 2 raise an error, others drop it."""
    if not has_chat_template(tokenizer):
        return False
    try:
        return _SYSTEM in _apply_template(
            tokenizer, [_message(tokenizer, "system", _SYSTEM), _message(tokenizer, "user", _USER)], tokenize=False
        )
    except ModelError:
        return False


def tells_the_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template tells the model the date, so that its text is another one tomorrow."""
    if not has_chat_template(tokenizer):
        return False
    message = [_message(tokenizer, "user", _USER)]
    days = ("2001-02-03", "2019-11-28")
    return len({_apply_template(tokenizer, message, day, tokenize=False) for day in days}) > 1


def borrow_template(source: str) -> str:
    """Return the text of a chat template that belongs to another model, for one that has none or a different one.

    What it says is a stranger's program: transformers renders it in jinja's sandbox, where it reaches nothing but the
    prompt.

    Args:
        source: a known name that is fetched, a hub id, a model's folder, or a file with the template itself. One of
            several named templates is SOURCE#NAME.

    Raises:
        ModelError: when there is none.
    """
    name = None
    if not os.path.exists(os.path.expanduser(source)):
        source, _, name = source.partition("#")
    known, path = KNOWN.get(source), Path(os.path.expanduser(source))
    if known is not None:
        if not is_fetched(known):
            raise ModelError(
                f"{source} is not on this machine, so its template cannot be borrowed: fetch the model first."
            )
        return _template_in(known.folder, source, name or None)
    if os.path.isdir(path):
        return _template_in(path, source, name or None)
    if os.path.isfile(path):
        return _read(path)
    if source.count("/") == 1 and not source.endswith(".jinja"):
        return _template_in(download_chat_template(source), source, name or None)
    raise ModelError(
        f"There is no template {source!r:.120}: expected a known name ({', '.join(KNOWN)}), a hub id, a model's "
        "folder, or a .jinja file."
    )


def put_template(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Let a tokenizer use a borrowed template.

    Raises:
        ModelError: see :func:`check_template`.
    """
    tokenizer.chat_template = text
    check_template(tokenizer, "The borrowed chat template")


def put_reasoning_effort(tokenizer: PreTrainedTokenizerBase, effort: str) -> None:
    """Let a tokenizer's chat template ask for a reasoning effort wherever it is rendered.

    Args:
        tokenizer: of the model.
        effort: the value of the template's own ``reasoning_effort``.

    Raises:
        ModelError: for a template without that setting, or that does not take this value.
    """
    template = tokenizer.get_chat_template() if has_chat_template(tokenizer) else ""
    if _EFFORT not in template:
        raise ModelError("This model's chat template has no setting of a reasoning effort: leave it out.")
    tokenizer.chat_template = f"{{% set {_EFFORT} = {json.dumps(effort)} %}}{template}"
    check_template(tokenizer, f"The chat template with the reasoning effort {effort}")


def _template_in(folder: Path, source: str, name: str | None) -> str:
    """Return a template of a tokenizer's folder, as transformers reads it: the default one, or one by name.

    Raises:
        ModelError: when there is none, and when there are several and none is the default.
    """
    templates = {path.stem: _read(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        templates[_DEFAULT] = _read(folder / "chat_template.jinja")
    else:
        templates |= _listed_templates(folder / "tokenizer_config.json")
    if not templates:
        raise ModelError(f"{source} has no chat template to borrow; choose a model that was made to chat.")
    if name is None and len(templates) == 1:
        return next(iter(templates.values()))
    if (name or _DEFAULT) not in templates:
        wanted = "default chat template" if name is None else f"chat template {name!r:.60}"
        raise ModelError(f"{source} has no {wanted}: {_named_templates(templates)}")
    return templates[name or _DEFAULT]


def _listed_templates(settings: Path) -> dict[str, str]:
    """Read the templates in a tokenizer's settings: one, or a list of named ones."""
    if not settings.is_file():
        return {}
    try:
        listed = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(listed, str):
            return {_DEFAULT: listed}
        return {str(entry["name"]): str(entry["template"]) for entry in listed or ()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{settings} cannot be read ({error}), so its template cannot be borrowed.") from error


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LONGEST_TEMPLATE:
            raise ModelError(f"{path.name} is longer than any chat template ({_LONGEST_TEMPLATE // 1024} KiB).")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path.name} cannot be read as a chat template ({error}).") from error


def check_thinking(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> None:
    """Raise ModelError when thinking is to be switched, and the template has no switch and the model does not think.

    The thought of a model that thinks by itself can be closed before it begins.
    """
    if thinking is None or _has_thinking_switch(tokenizer) or reply_thinks(tokenizer, None):
        return
    raise ModelError("This model's chat template cannot switch thinking on or off: leave that to the template.")


def reply_thinks(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> bool:
    """Whether a reply begins with the model's thinking: its template opens that, or leaves it to the model."""
    if not has_chat_template(tokenizer):
        return False
    marks = thinking_marks(tokenizer)
    switched = _has_thinking_switch(tokenizer)
    if thinking is False and not switched:
        return False
    rendered = _rendered(tokenizer, thinking)
    reply = rendered.rsplit(_USER, 1)[-1]
    if marks is not None and marks.opening.rstrip() in reply:
        return marks.closing not in reply.rsplit(marks.opening.rstrip(), 1)[-1]
    if switched:
        return rendered != _rendered(tokenizer, False)
    return marks is not None and marks.always


def thinking_marks(tokenizer: PreTrainedTokenizerBase) -> ThinkingMarks | None:
    """Return how the model marks its thinking, as far as its template tells; ``None`` where it is not known."""
    return marks_in(tokenizer.get_chat_template()) if has_chat_template(tokenizer) else None


def opens_thought(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> bool:
    """Return whether the template opens a thought by itself, which the model then goes on with."""
    marks = thinking_marks(tokenizer)
    if marks is None:
        return False
    after = _rendered(tokenizer, thinking).rsplit(_USER, 1)[-1].rpartition(marks.opening.rstrip())
    return bool(after[1]) and marks.closing not in after[2]


def closed_thought(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> str:
    """Return what is put behind a prompt so that a model that thinks by itself does not; empty where nothing is."""
    marks = thinking_marks(tokenizer)
    if thinking is not False or marks is None or _has_thinking_switch(tokenizer) or not reply_thinks(tokenizer, None):
        return ""
    return f"{marks.closing}{marks.reply}" if opens_thought(tokenizer, None) else marks.none


def _has_thinking_switch(tokenizer: PreTrainedTokenizerBase) -> bool:
    return has_chat_template(tokenizer) and _rendered(tokenizer, True) != _rendered(tokenizer, False)


def _rendered(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> str:
    switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    return str(_apply_template(tokenizer, [_message(tokenizer, "user", _USER)], tokenize=False, **switch))


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template's text, or None for a model without one."""
    if not has_chat_template(tokenizer):
        return None
    return hashlib.sha256(tokenizer.get_chat_template().encode()).hexdigest()


def _messages(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], system_prompt: str | None
) -> list[dict[str, Any]]:
    if turns[0].role != SYSTEM and not (
        system_prompt is None or (system_prompt == "" and default_system_prompt(tokenizer) is None)
    ):
        turns = (Turn(SYSTEM, system_prompt), *turns)
    if turns[0].role == SYSTEM and not takes_system_prompt(tokenizer):
        raise ModelError("This model's chat template has no system role, so it takes no system prompt: leave it out.")
    if len(turns) > 2 or any(turn.role != SYSTEM for turn in turns[:-1]):
        _check_keeps_turns(tokenizer, [turn.role for turn in turns])
    return [_message(tokenizer, turn.role, turn.content) for turn in turns]


def _check_keeps_turns(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> None:
    """Raise ModelError for a template that refuses turns of these roles in this order, or loses one of them."""
    marks = [f"zqx{number}turnqxz" for number in range(len(roles))]
    messages = [_message(tokenizer, role, mark) for role, mark in zip(roles, marks, strict=True)]
    rendered = str(_apply_template(tokenizer, messages, tokenize=False))
    places = [rendered.find(mark) for mark in marks]
    if min(places) < 0 or places != sorted(places):
        lost = next((role for role, place in zip(roles, places, strict=True) if place < 0), None)
        what = "puts them into another order" if lost is None else f"leaves a turn of the {lost} out"
        raise ModelError(
            f"This model's chat template does not take turns of {', '.join(roles)}: it {what}. Borrow another model's "
            "chat template, or leave such conversations out."
        )


def _message(tokenizer: PreTrainedTokenizerBase, role: str, content: str) -> dict[str, Any]:
    """Return one turn: its content is a text, or a list of parts for templates that lose a text."""
    if _takes_parts(tokenizer.get_chat_template()):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    return {"role": role, "content": content}


@lru_cache(maxsize=64)
def _takes_parts(template: str) -> bool:
    """Return whether a template renders a prompt only as a list of parts, as those of Idefics3 and SmolVLM do."""
    for parts in (False, True):
        content: Any = [{"type": "text", "text": _USER}] if parts else _USER
        try:
            rendered = render_template(template, [{"role": "user", "content": content}])
        except Exception:  # a template is a program of its own, and may fail in any way
            continue
        if _USER in rendered:
            return parts
    return False


def _apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    day: str | None = None,
    opens_reply: bool = True,
    **options: Any,
) -> Any:
    if day is not None:
        options["chat_template"] = _on_day(tokenizer.get_chat_template(), date.fromisoformat(day))
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=opens_reply, **options)
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

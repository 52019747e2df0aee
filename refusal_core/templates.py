"""From a prompt's text to the tokens the model reads: the chat template, applied and described."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from refusal_core.errors import ModelError, PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""How Qwen3, DeepSeek-R1, GLM and others mark the part of a reply in which the model thinks."""

_USER, _SYSTEM = "zqxuserqxz", "zqxsystemqxz"


def render(tokenizer: Any, text: str, system_prompt: str | None = None, thinking: bool | None = None) -> list[int]:
    """Token ids of one prompt as the model expects it, up to where its reply begins.

    With a chat template: one user message and the generation prompt. The ids are those of
    `tokenizer.apply_chat_template`, except that control tokens written out in the prompt (`<|im_end|>`) stay
    ordinary text: a prompt is data and cannot end its own turn. Without a template (base models): the text
    with the tokenizer's own special tokens, usually one that begins a sequence.

    `tokenizer` is a tokenizer or a ChatModel. `system_prompt` None keeps what the template does by itself; ""
    means no system text, also where the template would put in its own. `thinking` is the template's
    `enable_thinking`; None keeps what the template does by itself.

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
    ids = _apply_template(tokenizer, messages, tokenize=True, return_dict=False, sanitize_control_tokens=True, **switch)
    return list(ids)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer has a chat template; base models have none."""
    return bool(tokenizer.chat_template)


def default_system_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The system text that the template puts in when none is given, or None when it puts in nothing."""
    if not has_chat_template(tokenizer) or not takes_system_prompt(tokenizer):
        return None
    given = _apply_template(tokenizer, [_message("system", _SYSTEM), _message("user", _USER)], tokenize=False)
    before, after = given.split(_SYSTEM, 1)
    plain = _apply_template(tokenizer, [_message("user", _USER)], tokenize=False)
    if len(plain) <= len(before) + len(after) or not plain.startswith(before) or not plain.endswith(after):
        return None
    return plain[len(before) : len(plain) - len(after)]


def takes_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template has a place for a system prompt; Gemma 1 and 2 raise an error, others drop it."""
    if not has_chat_template(tokenizer):
        return False
    messages = [_message("system", _SYSTEM), _message("user", _USER)]
    try:
        return _SYSTEM in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return False


def check_thinking(tokenizer: PreTrainedTokenizerBase, thinking: bool | None) -> None:
    """Raise ModelError when thinking is to be switched and the template has no switch for it."""
    if thinking is not None and not _has_thinking_switch(tokenizer):
        raise ModelError("This model's chat template cannot switch thinking on or off: leave --thinking out.")


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
    switch = {} if thinking is None else {"enable_thinking": thinking}
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


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    except TemplateError as error:
        raise ModelError(f"The model's chat template refused the prompt: {error}") from error

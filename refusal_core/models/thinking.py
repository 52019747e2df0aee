"""How models mark the thinking that comes before their reply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkingMarks:
    """The marks of one family of models.

    Attributes:
        opening: what a thought begins with.
        closing: what it ends with.
        reply: what stands between the end of a thought and the reply.
        none: what stands in the place of a thought where there is none.
        always: whether every reply may begin with a thought although the template neither opens nor switches it.
    """

    opening: str
    closing: str
    reply: str
    none: str
    always: bool = False


_KNOWN = (
    # Harmony, of gpt-oss: what is thought and what is said are channels.
    ThinkingMarks(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>final<|message|>",
        always=True,
    ),
    # Gemma 4.
    ThinkingMarks("<|channel>thought\n", "<channel|>", "", "<|channel>thought\n<channel|>"),
    # Cohere's Command A Reasoning.
    ThinkingMarks(
        "<|START_THINKING|>",
        "<|END_THINKING|>",
        "<|START_RESPONSE|>",
        "<|START_THINKING|><|END_THINKING|><|START_RESPONSE|>",
        always=True,
    ),
    # Seed-OSS.
    ThinkingMarks("<seed:think>", "</seed:think>", "", "<seed:think></seed:think>", always=True),
    # Magistral and other models of Mistral.
    ThinkingMarks("[THINK]", "[/THINK]", "", "[THINK][/THINK]", always=True),
    ThinkingMarks("<thought>", "</thought>", "\n\n", "<thought>\n\n</thought>\n\n"),
    # Qwen3, DeepSeek-R1, GLM and most others.
    ThinkingMarks("<think>", "</think>", "\n\n", "<think>\n\n</think>\n\n"),
)


def marks_in(template: str) -> ThinkingMarks | None:
    """Return the marks that a chat template has in it, or ``None`` where it has none of those that are known."""
    return next((marks for marks in _KNOWN if marks.opening.rstrip() in template), None)

"""Every message a user can cause, in one small hierarchy.

Raised where the mistake is noticed, with one sentence that says what was expected, what arrived and what to do;
caught only where it is shown: the command line prints it, a page displays it.
"""

from __future__ import annotations


class RefusalError(Exception):
    """Something the user can mend. The message is meant to be read as it is."""


class ArrayError(RefusalError, ValueError):
    """Activations, labels or vectors of another shape or kind than expected."""


class PromptError(RefusalError):
    """A contrast set or prompt file that cannot be used."""


class ModelError(RefusalError):
    """A model that cannot be found, opened or used."""


class RunError(RefusalError):
    """A run that is missing, damaged or written by a newer version."""


class RatingError(RefusalError):
    """Ratings that cannot be read or saved."""


class MarkError(RefusalError):
    """Marks on prompts that cannot be read or saved."""


class AccessError(RefusalError):
    """A server that would be open to others, or a visitor who asks for more than a visitor may."""


class RenderingError(RefusalError):
    """A figure that cannot be drawn into a file."""


def first_line(error: BaseException) -> str:
    """Return what another library's error says, short enough to be quoted in a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

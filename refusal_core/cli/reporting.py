"""How a command reports its progress: bars on a terminal, or a file for another program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from refusal_core.errors import RefusalError
from refusal_core.progress import Progress
from refusal_core.progress.file import WAITING, ProgressFile

if TYPE_CHECKING:
    from filelock import FileLock

ProgressFileOption = Annotated[
    str | None,
    Parameter(
        name="--progress-file",
        help="Write progress to this file as JSON, for another program; work with a model then waits for other work "
        "that has its progress file in the same folder.",
    ),
]


class Reporter:
    """Reports the progress of one command; a context manager around all of it.

    The progress file is open until the command has printed its result, so that the file always says how that ended.
    """

    def __init__(self, progress_file: str | None) -> None:
        """Report to a file, or to bars without one."""
        self._path = None if progress_file is None else Path(progress_file)
        self._file: ProgressFile | None = None
        self._open = ExitStack()

    def __enter__(self) -> Reporter:
        """Begin the progress file, so that a command that fails at once says so in it."""
        if self._path is not None:
            self._file = self._open.enter_context(ProgressFile(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write into the progress file how the command ended."""
        self._open.__exit__(kind, error, trace)

    @contextmanager
    def progress(self, with_model: bool = True) -> Iterator[Progress]:
        """Give the callback that work reports to.

        Work with a model takes turns with other work that has its progress file in the same folder: visitors start it
        without knowing of each other, and two models might not fit into memory.

        Args:
            with_model: whether the work opens a model.

        Raises:
            RefusalError: when the turn cannot be taken.
        """
        # Not above: every command would wait for these imports, `--help` too.
        from filelock import FileLock

        from refusal_core.progress.bars import ProgressBars

        if self._path is None or self._file is None:
            with ProgressBars() as bars:
                yield bars
            return
        turn = FileLock(self._path.with_name(".turn"))
        try:
            if with_model:
                self._take(turn, self._file)
            yield self._file
        finally:
            turn.release()

    @staticmethod
    def _take(turn: FileLock, file: ProgressFile) -> None:
        from filelock import Timeout

        try:
            try:
                turn.acquire(timeout=0)
            except Timeout:
                file(WAITING, 0, 0)
                turn.acquire()
                file("starting", 0, 0)
        except OSError as error:
            raise RefusalError(
                f"the turn of this work cannot be taken in {turn.lock_file} ({error.strerror})"
            ) from error


ReporterArgument = Annotated[Reporter, Parameter(parse=False)]
"""Not an option: what :func:`refusal_core.cli.main.main` hands to a command."""

"""Telling people what takes time: a bar on a terminal, silence elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol

# rich is imported by those who show something: most runs do not.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Reporter(Protocol):
    """What long-running work calls."""

    def step(self, text: str) -> None:
        """A new step begins: ``text`` says what, in a few words."""

    def amount(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of the step are through."""


class Quiet:
    """Reports nothing."""

    def step(self, text: str) -> None:
        """Nothing."""

    def amount(self, done: int, total: int) -> None:
        """Nothing."""


class Bar:
    """A progress bar on a terminal; nothing at all where ``console`` is not one.

    Use as a context manager, so that the terminal is left in order.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        """Replace the bar by one for the new step."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=None)

    def amount(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

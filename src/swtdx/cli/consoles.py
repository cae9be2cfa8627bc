"""Rich's console, with a reader's departure left to :func:`swtdx.cli.main.main`."""

from __future__ import annotations

from rich.console import Console


class PlainConsole(Console):
    """A console that ends a command as any other writing does when nobody reads on: exit status 141."""

    def on_broken_pipe(self) -> None:
        """Rich would end with status 1, which here means "the answer is no"."""
        raise BrokenPipeError

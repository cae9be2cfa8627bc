"""A bar on a terminal, silence elsewhere."""

from __future__ import annotations

import io

from rich.console import Console

from swtdx.guests.progress import Bar


def run(terminal: bool) -> str:
    out = io.StringIO()
    with Bar(Console(file=out, force_terminal=terminal, width=80)) as bar:
        bar.amount(1, 2)  # before any step: nothing to move
        bar.step("fetching linux")
        bar.amount(1 << 20, 4 << 20)
        bar.step("unpacking linux")
    return out.getvalue()


def test_on_a_terminal() -> None:
    text = run(terminal=True)
    assert "unpacking linux" in text
    assert text.rstrip("\n").endswith(("\x1b[2K", "\x1b[?25h\r\x1b[1A\x1b[2K")), "the bar is taken away"
    assert "\x1b[?25h" in text, "the cursor is back"


def test_elsewhere() -> None:
    assert run(terminal=False) == ""

"""What makes TDs and quotes for tests."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

from swtdx.api.attesting import Quote, make_quote

if TYPE_CHECKING:
    from swtdx.api.linux import LinuxTd
    from swtdx.api.platform import Platform
    from swtdx.api.scripted import ScriptedTd
    from swtdx.testing.evidence import Evidence
    from swtdx.testing.snapshots import Snapshots


class ScriptedMaker:
    """Makes scripted TDs on a platform; they are closed with it."""

    def __init__(self, platform: Platform, evidence: Evidence) -> None:
        self.platform = platform
        self._evidence = evidence

    def __call__(self, *programs: Any, **options: Any) -> ScriptedTd:
        """As ``platform.scripted``."""
        td = self.platform.scripted(*programs, **options)
        self._evidence.watch(td)
        return td


class LinuxMaker:
    """Makes Linux TDs, each on a platform of its own; a context manager that closes them."""

    def __init__(self, snapshots: Snapshots | None, evidence: Evidence, *, trace: bool) -> None:
        self._snapshots = snapshots
        self._evidence = evidence
        self._trace = trace
        self._made = contextlib.ExitStack()

    def __call__(self, **options: Any) -> LinuxTd:
        """As ``platform.linux``."""
        from swtdx.testing.snapshots import boot

        td = boot(options) if self._snapshots is None else self._snapshots.td(options)
        self._made.callback(td.platform.close)
        self._evidence.watch(td)
        if self._trace:
            self._evidence.trace(td.platform)
        return td

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()


class QuoteMaker:
    """Makes quotes without a machine."""

    def __call__(self, report_data: bytes = b"", **fields: Any) -> Quote:
        """As ``swtdx.make_quote``."""
        return make_quote(report_data, **fields)

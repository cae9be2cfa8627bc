"""A hypervisor that means no good, for tests of what it must not achieve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swtdx.api.hypervisor import Hypervisor, SeamcallResult
    from swtdx.api.linux import LinuxTd
    from swtdx.api.platform import Platform
    from swtdx.api.scripted import ScriptedTd
    from swtdx.api.td import Hook
    from swtdx.testing.evidence import Evidence


class Hostile:
    """The hypervisor of ``platform`` in the hands of a test.

    ``hypervisor`` is all that it can do (``swtdx.Hypervisor``); the methods here are what tests do most.
    """

    def __init__(self, platform: Platform, evidence: Evidence, td: LinuxTd | None = None) -> None:
        self.platform = platform
        self._evidence = evidence
        self._td = td

    @property
    def hypervisor(self) -> Hypervisor:
        """The hypervisor."""
        return self.platform.hypervisor

    @property
    def td(self) -> LinuxTd:
        """The Linux TD of ``tdx_hostile_linux``.

        Raises:
            AttributeError: there is none: ``tdx_hostile`` makes scripted ones.
        """
        if self._td is None:
            raise AttributeError("tdx_hostile has no Linux TD: use tdx_hostile_linux, or scripted(...)")
        return self._td

    def scripted(self, *programs: Any, **options: Any) -> ScriptedTd:
        """A victim: a scripted TD, as ``platform.scripted``."""
        td = self.platform.scripted(*programs, **options)
        self._evidence.watch(td)
        return td

    def on_exit(self, hook: Hook) -> Hook:
        """Have ``hook`` called with every TD exit of every TD, first; also a decorator."""
        return self.hypervisor.on_exit(hook)

    def seamcall(self, leaf: str, **operands: int) -> SeamcallResult:
        """As ``hypervisor.seamcall``."""
        return self.hypervisor.seamcall(leaf, **operands)

    def refused(self, leaf: str, **operands: int) -> str:
        """A SEAMCALL that must be refused: the status by name.

        Raises:
            AssertionError: the module has done it.
        """
        result = self.seamcall(leaf, **operands)
        assert result.refused, f"{leaf} was done: {result.name}"
        return result.name

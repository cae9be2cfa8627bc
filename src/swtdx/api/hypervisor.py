"""The hypervisor of a platform, as one that may be hostile uses it: SEAMCALLs, memory, every exit."""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.api.td import Hook
from swtdx.arch import status as st
from swtdx.arch.host_leaves import HOST_BY_NAME
from swtdx.arch.regs import number
from swtdx.machine.host import ReservedBitFault
from swtdx.vmm.hypervisor import Hypervisor as InnerHypervisor


@dataclass(frozen=True, slots=True)
class SeamcallResult:
    """The registers after a SEAMCALL; ``result["RCX"]`` is one of them."""

    registers: tuple[int, ...]

    def __getitem__(self, register: str) -> int:
        """A general-purpose register by name, in any case.

        Raises:
            ValueError: there is no such register.
        """
        return self.registers[number(register)]

    @property
    def status(self) -> int:
        """RAX, 64 bits."""
        return self.registers[0]

    @property
    def name(self) -> str:
        """The status by name (``"TDX_SUCCESS"``), without its details."""
        return st.name_of(self.status)

    @property
    def refused(self) -> bool:
        """Whether the module says that it was not done."""
        return st.is_error(self.status)


class Hypervisor:
    """What software in VMX root operation can do on a platform.  See ``platform.hypervisor``."""

    def __init__(self, inner: InnerHypervisor) -> None:
        self._inner = inner
        self._hooks: list[Hook] = []

    # ------------------------------------------------------------------ exits
    @property
    def hooks(self) -> tuple[Hook, ...]:
        """The hooks, in the order in which they are called."""
        return tuple(self._hooks)

    def on_exit(self, hook: Hook) -> Hook:
        """Have ``hook`` called with every TD exit of every TD, before it is handled; also a decorator."""
        self._hooks.append(hook)
        return hook

    def remove_hook(self, hook: Hook) -> None:
        """Do not call ``hook`` any more.  Nothing happens if it was none."""
        self._hooks = [one for one in self._hooks if one is not hook]

    # ------------------------------------------------------------------ the module
    def seamcall(self, leaf: str, *, cpu: int = 0, version: int = 0, **registers: int) -> SeamcallResult:
        """One SEAMCALL, without retries: ``seamcall("TDH.MNG.RD", rcx=td.tdr, rdx=field)``.

        What the next TDH.VP.ENTER passes to a guest stays as it is.  In a hook, ``cpu`` must be the
        processor that runs the vCPU, or one that runs none.

        Args:
            leaf: its name.
            cpu: the logical processor.
            version: of the leaf.
            registers: operands, by register; the others keep what they hold.

        Raises:
            KeyError: no leaf is called so.
            ValueError: there is no such register.
            IndexError: there is no such processor.
        """
        known = HOST_BY_NAME.get(leaf.upper())
        if known is None:
            raise KeyError(f"no SEAMCALL leaf is called {leaf!r}: see `swtdx abi`")
        processor = self._inner.processors[cpu]
        with processor.borrowed():
            kept = processor.gpr[:]
            try:
                for name, value in registers.items():
                    processor.gpr[number(name)] = value & (1 << 64) - 1
                status = processor.call_once(known.number | version << 16)
                after = (status, *processor.gpr[1:])
            finally:
                processor.gpr[:] = kept
        return SeamcallResult(after)

    # ------------------------------------------------------------------ memory
    def read(self, hpa: int, size: int) -> bytes:
        """Physical memory as the hypervisor gets it: a page of a TD reads as zeros.

        Raises:
            PermissionError: the address carries a private KeyID.
        """
        try:
            return self._inner.host.memory.read(hpa, size)
        except ReservedBitFault as fault:
            raise PermissionError(str(fault)) from None

    def write(self, hpa: int, data: bytes) -> None:
        """Store bytes; into a TD's page this destroys what was there, and the TD gets a machine check.

        Raises:
            PermissionError: the address carries a private KeyID.
        """
        try:
            self._inner.host.memory.write(hpa, data)
        except ReservedBitFault as fault:
            raise PermissionError(str(fault)) from None

    def page(self) -> int:
        """HPA of a free page, for what a SEAMCALL wants.

        Raises:
            VmmError: there is none.
        """
        return self._inner.allocator.page("a script's")

    def with_keyid(self, hpa: int, keyid: int) -> int:
        """A physical address with a KeyID in its upper bits."""
        return hpa | keyid << self._inner.host.keyid_shift

    @property
    def internals(self) -> InnerHypervisor:
        """What is beneath, and may change in any release."""
        return self._inner

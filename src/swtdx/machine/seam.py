"""SEAM: the mode, the range, and who may be entered.

Nothing runs in SEAM that was not installed here by the loader chain (``swtdx.firmware``).  The register
SEAMEXTEND (structures.md §12) is the gate: SEAMCALL reaches the P-SEAMLDR only while it says
P_SEAMLDR_READY, and the TDX Module only while it says SEAM_READY.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from swtdx.arch.seam_structs import SEAMEXTEND
from swtdx.machine.cpu.fuses import Fuses
from swtdx.machine.faults import GeneralProtection
from swtdx.machine.memory import PhysicalMemory, Requestor
from swtdx.machine.seamops import SeamDatabase
from swtdx.machine.snapshot import SectionReader, SectionWriter

#: Code that SEAMCALL enters, with the logical processor that executed it (a LogicalProcessor, which SEAM only
#: passes through): it works on the processor's registers and returns by SEAMRET.
Entry = Callable[[Any], None]

#: SEAMEXTEND is moved through a buffer aligned to this many bytes.
SEAMEXTEND_ALIGNMENT: Final = 256
#: Byte of SEAMEXTEND that the processor owns: the SE SVN of the last microcode patch.
_SE_SVN: Final = 10


class Seam:
    """SEAM state of the whole machine."""

    def __init__(self, lock: threading.RLock) -> None:
        """``lock`` is the memory's, held wherever SEAM code runs."""
        #: Whether SEAMRR is configured and valid (MCHECK has run).
        self.enabled = False
        self.p_seamldr_entry: Entry | None = None
        #: Held while a processor executes SEAM code, released while it runs a guest.  It is the memory's
        #: lock: SEAM code works on views of frames, and none may leave the cache, or be written to from
        #: another processor, while it does.
        self.lock = lock
        #: Hardware lets one processor at a time into the P-SEAMLDR; others get VMfailInvalid.
        self.p_seamldr_lock = threading.Lock()
        #: The SEAMEXTEND register, 136 bytes; change it with :meth:`write_seamextend`.
        self.extend: bytes = bytes(SEAMEXTEND.size)
        self.database = SeamDatabase()
        self.fuses = Fuses(b"")
        self.cpusvn = bytes(16)
        self.se_svn = 0
        #: What SEAMCALL enters, by index of the logical processor; empty while SEAM_READY is clear.
        self.gates: list[Entry] = []
        self._loaded: Entry | None = None
        self._processors = 0

    def power_on(self, fuses: Fuses, cpusvn: bytes, se_svn: int) -> None:
        """Reset of the processors: give SEAM the part's fuses and security versions."""
        self.fuses, self.cpusvn, self.se_svn = fuses, cpusvn, se_svn

    # ------------------------------------------------------------------ snapshots
    def save_state(self, out: SectionWriter) -> None:
        """See :class:`swtdx.machine.saved.Saved`.  Code that SEAMCALL enters is not saved."""
        out.u8(self.enabled)
        out.write(self.extend)
        out.u32(len(self.database.entries))
        for nonce, extend in self.database.entries:
            out.write(nonce)
            out.write(extend)

    def load_state(self, section: SectionReader) -> None:
        """See :class:`swtdx.machine.saved.Saved`."""
        self.enabled = bool(section.u8())
        self.write_seamextend(section.read(SEAMEXTEND.size))
        for _ in range(section.u32()):
            nonce = section.read(32)
            self.database.entries.append((nonce, section.read(SEAMEXTEND.size)))

    # ------------------------------------------------------------------ SEAMEXTEND
    def write_seamextend(self, value: bytes) -> None:
        """Copy 136 bytes into SEAMEXTEND.  The SE SVN byte stays the processor's own.

        Raises:
            GeneralProtection: the value has another size.
        """
        if len(value) != SEAMEXTEND.size:
            raise GeneralProtection(f"SEAMEXTEND has {SEAMEXTEND.size} bytes, not {len(value)}")
        register = bytearray(value)
        register[_SE_SVN] = self.se_svn if SEAMEXTEND.valid.get(register) else 0
        self.extend = bytes(register)
        loaded = self._loaded if SEAMEXTEND.seam_ready.get(register) else None
        self.gates = [] if loaded is None else [loaded] * self._processors
        if not SEAMEXTEND.p_seamldr_ready.get(register):
            self.p_seamldr_entry = None

    def transfer_seamextend(self, memory: PhysicalMemory, pa: int, *, out: bool) -> None:
        """IA32_SEAMEXTEND's two commands: copy the register out to, or in from, memory at ``pa``.

        Raises:
            GeneralProtection: ``pa`` is not aligned to 256 bytes.
        """
        if pa % SEAMEXTEND_ALIGNMENT:
            raise GeneralProtection(f"IA32_SEAMEXTEND: {pa:#x} is not aligned to 256 bytes")
        if out:
            memory.write(pa, self.extend, Requestor.SEAM)
        else:
            self.write_seamextend(memory.read(pa, SEAMEXTEND.size, Requestor.SEAM))

    # ------------------------------------------------------------------ who is entered
    def module_entry(self, lp: int) -> Entry | None:
        """The TDX Module's entry point on logical processor ``lp``, None when it is not loaded."""
        return self.gates[lp] if lp < len(self.gates) else None

    @property
    def module(self) -> Any:
        """The loaded module's entry, whether SEAM_READY says so or not; None if there is none."""
        return self._loaded

    def install_module(self, entry: Entry, processors: int) -> None:
        """The SEAM VMCSs of all processors now point to ``entry``, and SEAM_READY is set."""
        self._loaded = entry
        self._processors = processors
        register = bytearray(self.extend)
        SEAMEXTEND.seam_ready.set(register, 1)
        self.write_seamextend(bytes(register))

    def remove_module(self) -> None:
        """SEAM_READY is cleared and the SEAM VMCSs are gone: SEAMCALLs to the module fail."""
        register = bytearray(self.extend)
        SEAMEXTEND.seam_ready.set(register, 0)
        self._loaded = None
        self._processors = 0
        self.write_seamextend(bytes(register))

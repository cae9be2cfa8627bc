"""Guest memory as the processor's microcode looks at it: code at RIP, and operands by linear address."""

from __future__ import annotations

import struct
from collections.abc import Callable

from swtdx.arch.x86 import CR4_LA57
from swtdx.machine.cpu.core import ProcessorCore
from swtdx.machine.engine.protocol import GuestContext
from swtdx.machine.vmx import decode
from swtdx.machine.vmx.core import VmxCore
from swtdx.machine.vmx.paging import linear_to_gpa
from swtdx.machine.vmx.translate import Translator
from swtdx.machine.vmx.vmcs import Vmcs


class Microcode(VmxCore):
    """The core, with eyes: what carries out or decodes a guest's instruction is handed this."""

    def __init__(self, lp: ProcessorCore) -> None:
        super().__init__(lp)
        self.translator = Translator(self)
        self._frames = self.memory.frames
        self._words = self._frames.cast("Q")

    def _read_qword(self, vmcs: Vmcs) -> Callable[[int], int | None]:
        lookup, frames, reach = vmcs.space.lookup, self.memory.frames, self.translator.reach

        def read(gpa: int) -> int | None:
            hpa = lookup(gpa)
            if hpa is None:
                hpa = reach(vmcs, gpa)
                if hpa is None:
                    return None
            value: int = struct.unpack_from("<Q", frames, hpa)[0]
            return value

        return read

    def fetch(self, vmcs: Vmcs, count: int = decode.MAX_LENGTH) -> bytes:
        """Up to ``count`` bytes of code at CS:RIP; fewer where the next page is not mapped."""
        context: GuestContext = vmcs.context
        known = context.code
        if known is not None:
            return known
        if context.long_mode:
            linear = context.rip
            if linear & 4095 <= 4096 - count and not context.cr4 & CR4_LA57:
                # The usual case, some ten thousand times in a boot: everything is cached.
                hpa = vmcs.space.code_address(linear, context.cr3, self._words)
                if hpa is not None:
                    return bytes(self._frames[hpa : hpa + count])
        linear = self.linear_rip(vmcs)
        read = self._read_qword(vmcs)
        code = b""
        while len(code) < count:
            gpa = linear_to_gpa(linear, context.cr0, context.cr3, context.cr4, context.efer, read)
            hpa = None if gpa is None else self.translator.reach(vmcs, gpa)
            if hpa is None:
                break
            part = min(count - len(code), 4096 - (linear & 4095))
            code += bytes(self.memory.frames[hpa : hpa + part])
            linear += part
        return code

    def code_at(self, vmcs: Vmcs) -> int | None:
        """The host-physical address of the code at CS:RIP; None where it is not mapped."""
        context = vmcs.context
        gpa = linear_to_gpa(
            self.linear_rip(vmcs), context.cr0, context.cr3, context.cr4, context.efer, self._read_qword(vmcs)
        )
        return None if gpa is None else self.translator.reach(vmcs, gpa)

    def length(self, vmcs: Vmcs, usual: bytes) -> int:
        """Length of the instruction at RIP, most likely ``usual``."""
        code = self.fetch(vmcs)
        if code.startswith(usual):
            return len(usual)
        if not code:
            return len(usual)
        return decode.length(code, vmcs.context.rip, self.code_bits(vmcs))

    def read_linear(self, vmcs: Vmcs, linear: int, count: int) -> int:
        """``count`` (at most 8) bytes of guest memory within one page, 0 where it is not mapped."""
        context = vmcs.context
        read = self._read_qword(vmcs)
        gpa = linear_to_gpa(linear, context.cr0, context.cr3, context.cr4, context.efer, read)
        hpa = None if gpa is None else self.translator.reach(vmcs, gpa)
        return 0 if hpa is None else int.from_bytes(self.memory.frames[hpa : hpa + count], "little")

"""A page is taken for a TD while another processor's root code reads it over and over."""

from __future__ import annotations

import struct

import pytest

from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM
from swtdx.machine.root.world import RootWorld
from tests.assembler import assemble
from tests.machine.guests import HKID, build_machine

pytestmark = pytest.mark.qemu

CODE, READER, GDT, PAGES, SHARED = 0x8000, 0x9000, 0x3000, 0x4000, 0xA000
TAKEN, KEYID_SHIFT, PORT = 0x400000, 46, 0x600
SECRET = b"secret!!"
#: What the reader has read last, whether it saw the secret ever, and that it is to end.
READ, SEEN, END = SHARED, SHARED + 8, SHARED + 16

_TAKER = f"""
1:      cmp     qword ptr [{READ}], 5           # the reader has the page translated
        pause
        jne     1b
        mov     dx, {PORT}
        in      al, dx                          # it becomes a TD's
        mov     ecx, 20000000
2:      dec     ecx
        jnz     2b
        mov     byte ptr [{END}], 1
        mov     al, 1
        out     dx, al
3:      hlt
        jmp     3b
"""
_READER = f"""
        movabs  rbx, {int.from_bytes(SECRET, "little")}
1:      mov     rax, [{TAKEN}]
        mov     [{READ}], rax
        cmp     rax, rbx
        jne     2f
        mov     byte ptr [{SEEN}], 1
2:      cmp     byte ptr [{END}], 0
        je      1b
        mov     dx, {PORT}
        out     dx, al
3:      hlt
        jmp     3b
"""


class Ports:
    """IN makes the page a TD's; OUT ends the processor that executes it."""

    def __init__(self, machine: Machine, world: RootWorld) -> None:
        self._machine = machine
        self._world = world

    def read(self, port: int, size: int) -> int:
        memory = self._machine.memory
        with memory.lock:
            memory.direct_zero(TAKEN | HKID << KEYID_SHIFT, 4096, SEAM)
            view = memory.map_page(TAKEN, HKID)
            view[: len(SECRET)] = SECRET
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        self._world.stop()


def test_the_other_processor_never_reads_the_secret() -> None:
    with build_machine("qemu-root") as machine:
        memory = machine.memory
        memory.write(TAKEN, struct.pack("<Q", 5))
        memory.write(SHARED, bytes(24))
        for at, source in ((CODE, _TAKER), (READER, _READER)):
            memory.write(at, assemble(source, 64, at))
        memory.write(GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        memory.write(PAGES, struct.pack("<Q", PAGES + 0x1003))
        memory.write(PAGES + 0x1000, struct.pack("<Q", 0x83))
        machine.engine.stop_at_ports([PORT])  # type: ignore[attr-defined]
        worlds = [RootWorld(lp, ()) for lp in machine.processors]
        for world, start in zip(worlds, (CODE, READER), strict=True):
            world.ports = Ports(machine, world)
            world.start(start, page_table=PAGES, gdt=GDT)

        def failed(_error: BaseException) -> None:
            for world in worlds:
                world.stop()

        machine.together({world.lp.index: world.run for world in worlds}, failed)
        read, seen = struct.unpack("<QB", memory.read(SHARED, 9))
        assert not seen
        # From then on it reads zeros; and by that it has not hurt the TD.
        assert read == 0
        assert memory.read(TAKEN | HKID << KEYID_SHIFT, 8, SEAM) == SECRET

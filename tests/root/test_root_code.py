"""Machine code in the root world, without a TDX module: instructions, registers, and memory's rules."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.machine.engine.qemu.process import find_qemu
from swtdx.machine.machine import Machine
from swtdx.machine.memory import SEAM, Requestor
from swtdx.machine.root.world import RootWorld
from tests.assembler import assemble
from tests.machine.guests import HKID, build_machine

pytestmark = pytest.mark.qemu

CODE, GDT, IDT, PAGES, RESULTS, STACK = 0x8000, 0x3000, 0x9000, 0x4000, 0xA000, 0x7000
AREA = 0xB000
DONE_PORT = 0x600
PRIVATE = 0x400000
KEYID_SHIFT = 46
#: Every exception ends the run; DL tells its vector.
_HANDLERS = "".join(
    f".balign 16\nmov dword ptr [{RESULTS} + 0x80], {vector}\njmp trap\n" for vector in range(32)
)
_FRAME = f"""
        mov     rsp, {STACK}
        lidt    [rip + idtr]
        jmp     body
trap:   mov     rax, cr2
        mov     [{RESULTS} + 0x88], rax
        mov     rax, [rsp]
        mov     [{RESULTS} + 0x90], rax
        mov     dx, {DONE_PORT}
        out     dx, al
1:      hlt
        jmp     1b
idtr:   .word   0x1FF
        .quad   {IDT}
        .balign 16
handlers:
{_HANDLERS}
body:
"""


class Port:
    """Ends the run."""

    world: RootWorld

    def read(self, port: int, size: int) -> int:
        return 0x5A

    def write(self, port: int, size: int, value: int) -> None:
        self.world.stop()


class Code:
    """Code in 64-bit mode on processor 0; its results are 16 quadwords at RESULTS."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = machine.memory
        machine.engine.stop_at_ports([DONE_PORT])  # type: ignore[attr-defined]

    def run(self, source: str, port: Port | None = None) -> list[int]:
        """What RESULTS holds in the end: 16 words, the vector of an exception, CR2, and the error code."""
        memory = self.memory
        lp = self.machine.processors[0]
        code = assemble(_FRAME + source + f"\nmov dx, {DONE_PORT}\nout dx, al\n1: hlt\njmp 1b", 64, CODE)
        memory.write(CODE, code)
        self.machine.code_written(CODE, len(code))
        handlers = code.index(b"\xc7\x04\x25" + struct.pack("<II", RESULTS + 0x80, 0)) + CODE
        gates = b"".join(
            struct.pack("<HHHHQ", handlers + 16 * vector & 0xFFFF, 0x10, 0x8E00, handlers >> 16, 0)
            for vector in range(32)
        )
        memory.write(IDT, gates)
        memory.write(RESULTS, struct.pack("<19Q", *[0] * 16, 0xFF, 0, 0))
        memory.write(GDT, struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF))
        memory.write(PAGES, struct.pack("<Q", PAGES + 0x1003))
        # 1 GiB pages of the lowest 4 GiB, and the first one under KeyIDs 1 and HKID (at 4 and 5 GiB).
        keyed = [keyid << KEYID_SHIFT | 0x83 for keyid in (1, HKID)]
        memory.write(
            PAGES + 0x1000, struct.pack("<6Q", *(number << 30 | 0x83 for number in range(4)), *keyed)
        )
        port = port or Port()
        port.world = RootWorld(lp, (), port)
        port.world.start(CODE, page_table=PAGES, gdt=GDT)
        try:
            port.world.run()
            assert port.world.ended is None
        finally:
            port.world.close()
            if lp.mode.value == "VMX root":
                lp.vmxoff()
        return list(struct.unpack("<19Q", memory.read(RESULTS, 152)))


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    with build_machine("qemu-root") as machine:
        lp = machine.processors[0]
        lp.msrs.poke(0x3A, 5)
        yield Code(machine)


VMXON = f"""
        mov     rax, cr4
        or      rax, 0x2000
        mov     cr4, rax
        mov     ecx, 0x480
        rdmsr
        mov     [{AREA}], eax
        mov     qword ptr [{RESULTS}], {AREA}
        vmxon   [{RESULTS}]
"""


def test_identity_is_that_of_the_processor(code: Code) -> None:
    found = code.run(
        f"mov eax, 1; xor ecx, ecx; cpuid; mov [{RESULTS}], rax; mov [{RESULTS} + 8], rcx;"
        f"mov ecx, 0x480; rdmsr; mov [{RESULTS} + 16], rax; mov [{RESULTS} + 24], rdx;"
        f"mov eax, 7; xor ecx, ecx; cpuid; mov [{RESULTS} + 32], rcx"
    )
    lp = code.machine.processors[0]
    assert found[0] == lp.cpuid(1)[0]
    assert found[1] >> 5 & 1, "VMX"
    assert found[3] << 32 | found[2] == lp.rdmsr(0x480)
    assert found[4] >> 28 & 1, "MOVDIR64B, which software of the machine sees"


def test_an_msr_that_does_not_exist_is_gp(code: Code) -> None:
    assert code.run("mov ecx, 0x1234; rdmsr")[16] == 13


def test_vmxon_and_vmxoff(code: Code) -> None:
    found = code.run(
        VMXON + f"pushfq; pop [{RESULTS} + 8]; vmxon [{RESULTS}]; pushfq; pop [{RESULTS} + 16];"
        f"mov rax, cr4; mov [{RESULTS} + 24], rax; vmxoff; pushfq; pop [{RESULTS} + 32]"
    )
    assert found[16] == 0xFF
    assert [found[place] & 0x8D5 for place in (1, 2, 4)] == [0, 1, 0]
    # From 9.1 on QEMU looks at the intercept of CR0 where CR4 is read (docs/engine.md).
    assert find_qemu()[1] >= (9, 1) or found[3] >> 13 & 1, "CR4.VMXE reads as it was written"


def test_vmxon_needs_a_region_with_the_revision(code: Code) -> None:
    found = code.run(
        VMXON.replace(f"mov     [{AREA}], eax", f"inc eax; mov [{AREA}], eax")
        + f"pushfq; pop [{RESULTS} + 8]; mov qword ptr [{RESULTS}], {AREA + 8}; vmxon [{RESULTS}];"
        f"pushfq; pop [{RESULTS} + 16]"
    )
    assert [found[place] & 0x8D5 for place in (1, 2)] == [1, 1]
    assert code.machine.processors[0].mode.value == "VMX off"


@pytest.mark.parametrize(
    ("source", "vector"),
    [
        (".byte 0x66, 0x0F, 0x01, 0xCF", 6),  # SEAMCALL outside VMX operation
        ("vmxoff", 6),
        (f"vmxon [{RESULTS}]", 6),  # CR4.VMXE is clear
        ("ud2", 6),
        (VMXON + "mov rax, cr4; and rax, ~0x2000; mov cr4, rax", 13),
        (VMXON + "mov rax, cr0; and rax, ~0x20; mov cr0, rax", 13),
        (VMXON + ".byte 0x66, 0x0F, 0x01, 0xCF", 13),  # there is no SEAM here
        (".byte 0x0F, 0x01, 0xD8", 6),  # VMRUN is not Intel's
        ("mov ecx, 0xC0000080; rdmsr; or eax, 0x1000; wrmsr", 13),  # nor EFER.SVME
        ("mov rax, cr4; or rax, 0x800000; mov cr4, rax", 13),  # CET, which is not shown
    ],
)
def test_exceptions(code: Code, source: str, vector: int) -> None:
    assert code.run(source)[16] == vector


def test_vmcss_of_ordinary_guests_can_be_kept_but_not_entered(code: Code) -> None:
    found = code.run(
        VMXON + f"mov eax, [{AREA}]; mov [{AREA} + 0x1000], eax;"
        f"mov qword ptr [{RESULTS}], {AREA} + 0x1000; vmclear [{RESULTS}]; vmptrld [{RESULTS}];"
        f"mov eax, 0x681E; mov ecx, 0x1234; vmwrite rax, rcx; vmread [{RESULTS} + 8], rax;"
        f"vmlaunch; pushfq; pop [{RESULTS} + 16];"
        f"mov eax, 0x4400; vmread rcx, rax; mov [{RESULTS} + 24], rcx;"
        f"vmptrst [{RESULTS} + 32]; vmclear [{RESULTS}]; vmlaunch; pushfq; pop [{RESULTS} + 40]"
    )
    assert found[16] == 0xFF
    assert found[1] == 0x1234
    assert found[2] & 0x8D5 == 1 << 6
    assert found[3] == 7
    assert found[4] == AREA + 0x1000
    assert found[5] & 0x8D5 == 1


def test_movdir64b(code: Code) -> None:
    data = bytes(range(64))
    code.memory.write(0x20000, data)
    found = code.run("mov eax, 0x21000; mov ebx, 0x20000; movdir64b rax, [rbx]")
    assert found[16] == 0xFF
    assert code.memory.read(0x21000, 64) == data
    assert code.run("mov eax, 0x21008; mov ebx, 0x20000; movdir64b rax, [rbx]")[16] == 13


# ---------------------------------------------------------------------- memory
def _secret(code: Code) -> bytes:
    secret = b"a TD's secret..." * 4
    code.memory.direct_zero(PRIVATE | HKID << KEYID_SHIFT, 4096, SEAM)
    code.memory.write(PRIVATE | HKID << KEYID_SHIFT, secret, SEAM)
    return secret


@pytest.mark.parametrize("base", [PRIVATE, (4 << 30) + PRIVATE], ids=["KeyID 0", "a shared KeyID"])
def test_a_tds_page_reads_as_zeros(code: Code, base: int) -> None:
    secret = _secret(code)
    found = code.run(
        f"mov rbx, {base}; mov ecx, 0; xor eax, eax;"
        f"1: or rax, [rbx + rcx * 8]; inc ecx; cmp ecx, 512; jne 1b; mov [{RESULTS}], rax"
    )
    assert found[16] == 0xFF
    assert found[0] == 0
    assert code.memory.read(PRIVATE | HKID << KEYID_SHIFT, len(secret), Requestor.TD) == secret


def test_a_private_keyid_is_a_reserved_bit(code: Code) -> None:
    _secret(code)
    found = code.run(f"mov rbx, {(5 << 30) + PRIVATE}; mov rax, [rbx]; mov [{RESULTS}], rax")
    assert found[0] == 0
    assert found[16:18] == [14, (5 << 30) + PRIVATE]
    # QEMU leaves bit 0 out (the page is present).
    assert found[18] & ~1 == 1 << 3


def test_a_store_into_a_tds_page_breaks_its_line(code: Code) -> None:
    _secret(code)
    found = code.run(f"mov byte ptr [{PRIVATE} + 64], 1")
    assert found[16] == 0xFF
    read = code.memory.read
    assert read(PRIVATE | HKID << KEYID_SHIFT, 64, Requestor.TD)
    with pytest.raises(Exception, match="#MC"):
        read(PRIVATE + 64 | HKID << KEYID_SHIFT, 64, Requestor.TD)


def test_a_page_is_taken_away_from_code_that_has_it_translated(code: Code) -> None:
    """The second store goes to the page as it is then: nothing that was translated before is used."""
    memory = code.memory
    memory.write(PRIVATE, bytes(4096))

    class Taker(Port):
        def read(self, port: int, size: int) -> int:
            memory.direct_zero(PRIVATE | HKID << KEYID_SHIFT, 4096, SEAM)
            memory.write(PRIVATE | HKID << KEYID_SHIFT, b"secret!!", SEAM)
            return 0

    found = code.run(
        f"mov qword ptr [{PRIVATE}], 5; mov rax, [{PRIVATE}]; mov [{RESULTS}], rax;"
        f"mov dx, {DONE_PORT}; in al, dx; mov rax, [{PRIVATE}]; mov [{RESULTS} + 8], rax",
        Taker(),
    )
    assert found[:2] == [5, 0]
    assert memory.read(PRIVATE | HKID << KEYID_SHIFT, 8, Requestor.TD) == b"secret!!"


def test_where_there_is_no_memory_loads_give_ones(code: Code) -> None:
    found = code.run(
        f"mov ebx, 0xC0000000; mov rax, [rbx]; mov [{RESULTS}], rax; mov qword ptr [rbx + 8], 7;"
        f"mov rax, [rbx + 8]; mov [{RESULTS} + 8], rax"
    )
    assert found[16] == 0xFF
    assert found[:2] == [(1 << 64) - 1] * 2


def test_ports(code: Code) -> None:
    found = code.run(f"mov eax, 0x11111111; mov dx, {DONE_PORT}; in al, dx; mov [{RESULTS}], rax")
    assert found[0] == 0x1111115A

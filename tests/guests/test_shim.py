"""The shim, executed: every promise that ``shim/shim.S`` makes at its top, and every attack on them."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import struct
from dataclasses import dataclass

import pytest
from unicorn import UC_HOOK_MEM_READ, Uc
from unicorn import x86_const as x

from swtdx.guests import event_log as log
from swtdx.guests.direct_boot import DirectBoot, build_direct_boot
from swtdx.guests.memory_map import (
    ACPI_GPA,
    BOOT_INFO_GPA,
    BOOT_PARAMS_GPA,
    COMMAND_LINE_GPA,
    EVENT_LOG_BYTES,
    EVENT_LOG_GPA,
    MAILBOX_GPA,
    SHIM_GPA,
)
from swtdx.guests.plan import PrivatePage
from tests.guests.bzimage import make_bzimage
from tests.guests.td_model import GPAW, LARGE, PAGE, SHARED_BIT, FatalError, TdModel

MEMORY = 64 << 20
CMDLINE = "console=hvc0 quiet"


@dataclass(frozen=True)
class Acpi:
    tables: tuple[tuple[int, bytes], ...] = ((ACPI_GPA, b"RSD PTR " * 4), (ACPI_GPA + 0x1000, b"FACP" * 61))
    rsdp_gpa: int = ACPI_GPA


def boot(initrd: bytes = b"initrd", kernel: bytes | None = None, memory: int = MEMORY) -> DirectBoot:
    return build_direct_boot(kernel or make_bzimage(), initrd, CMDLINE, memory, 48, Acpi())


def offsets(plan: DirectBoot) -> list[int]:
    """The shared blobs' addresses without the shared bit of GPAW 48."""
    return [blob.gpa & ~(1 << 47) for blob in plan.shared]


def model(plan: DirectBoot, **options: object) -> TdModel:
    td = TdModel(plan.pages, **options)  # type: ignore[arg-type]
    for gpa, blob in zip(offsets(plan), plan.shared, strict=True):
        td.share(gpa, blob.data)
    return td


def started(plan: DirectBoot, **options: object) -> TdModel:
    td = model(plan, **options)
    td.start(plan.kernel_entry)
    assert td.register(x.UC_X86_REG_RIP) == plan.kernel_entry
    return td


# -- the way to the kernel -------------------------------------------------------------------------


def test_everything_arrives_where_it_was_promised() -> None:
    kernel = make_bzimage(random.Random(1).randbytes(300_001), setup_sects=39)
    initrd = random.Random(2).randbytes(70_003)
    plan = boot(initrd, kernel)
    td = started(plan)
    params = td.read(BOOT_PARAMS_GPA, PAGE)
    initrd_gpa, initrd_size = struct.unpack_from("<II", params, 0x218)
    assert td.read(initrd_gpa, initrd_size) == initrd
    assert td.read(0x1000000 - 40 * 512, len(kernel)) == kernel
    assert td.read(COMMAND_LINE_GPA, len(CMDLINE) + 1) == CMDLINE.encode() + b"\0"
    assert td.read(ACPI_GPA, 32) == b"RSD PTR " * 4
    assert td.read(ACPI_GPA + 0x1000, 61 * 4) == b"FACP" * 61


def test_the_kernel_finds_the_state_of_the_64_bit_boot_protocol() -> None:
    plan = boot()
    td = started(plan)
    assert td.register(x.UC_X86_REG_RSI) == BOOT_PARAMS_GPA
    assert td.register(x.UC_X86_REG_CS) == 0x10
    for segment in (x.UC_X86_REG_DS, x.UC_X86_REG_ES, x.UC_X86_REG_SS):
        assert td.register(segment) == 0x18
    assert td.register(x.UC_X86_REG_EFLAGS) & (1 << 9 | 1 << 10) == 0  # IF, DF
    assert td.register(x.UC_X86_REG_CR0) & 0x80000001 == 0x80000001
    assert td.register(x.UC_X86_REG_CR4) & 0x60 == 0x60  # PAE set, MCE kept
    efer = td.uc.reg_read(x.UC_X86_REG_MSR, 0xC0000080)
    assert efer & 0x500 == 0x500  # LME, LMA
    # The GDT that holds those selectors: flat 64-bit code and flat data.
    _, base, limit, _ = td.uc.reg_read(x.UC_X86_REG_GDTR)
    assert limit >= 0x1F
    code, data = struct.unpack("<QQ", td.read(base + 0x10, 16))
    assert code >> 53 & 1 == 1  # L
    assert (code >> 43 & 3, data >> 41 & 1) == (3, 1)  # code; data writable


@pytest.mark.parametrize("size", [1, 111, 112, 119, 120, 127, 128, 129, 239, 240, 255, 256, 4096, 100_000])
def test_hashes_of_every_length_modulo_a_block(size: int) -> None:
    plan = boot(random.Random(size).randbytes(size))
    td = started(plan)
    # hashlib is the other opinion: RTMR2 holds the command line, then the initrd.
    expected = bytes(48)
    for content in (CMDLINE.encode(), plan.shared[4].data):
        expected = hashlib.sha384(expected + hashlib.sha384(content).digest()).digest()
    assert td.rtmrs[2] == expected


def test_rtmrs_are_as_planned() -> None:
    plan = boot()
    td = started(plan)
    assert tuple(td.rtmrs) == plan.rtmrs
    assert td.rtmrs[3] == bytes(48)
    kernel = hashlib.sha384(make_bzimage()).digest()
    assert td.rtmrs[1] == hashlib.sha384(bytes(48) + kernel).digest()


def test_without_an_initrd() -> None:
    plan = boot(b"")
    td = started(plan)
    assert len(plan.events) == 4
    assert struct.unpack_from("<II", td.read(BOOT_PARAMS_GPA, PAGE), 0x218) == (0, 0)


def parse_log(data: bytes) -> list[tuple[int, int, bytes, bytes]]:
    """(register, type, digest, data) of each record after the header, as a verifier reads them."""
    register, kind, sha1, size = struct.unpack_from("<II20sI", data)
    assert (kind, sha1) == (3, bytes(20))
    spec = data[32 : 32 + size]
    assert spec.startswith(b"Spec ID Event03\0")
    # Class 0, version 2.0, errata 0, 64-bit, one algorithm.
    assert struct.unpack_from("<I4BI", spec, 16) == (0, 0, 2, 0, 2, 1)
    assert struct.unpack_from("<HH", spec, 28) == (0xC, 48)
    records, at = [], 32 + size
    while data[at : at + 4] != b"\xff" * 4:
        register, kind, count, algorithm = struct.unpack_from("<IIIH", data, at)
        assert (count, algorithm) == (1, 0xC)
        digest = data[at + 14 : at + 62]
        (size,) = struct.unpack_from("<I", data, at + 62)
        records.append((register, kind, digest, data[at + 66 : at + 66 + size]))
        at += 66 + size
    assert data[at:] == b"\xff" * (len(data) - at)
    return records


def test_the_event_log_replays_to_the_rtmrs() -> None:
    plan = boot()
    td = started(plan)
    area = td.read(EVENT_LOG_GPA, EVENT_LOG_BYTES)
    assert area.startswith(log.encode_log(plan.events))
    records = parse_log(area)
    rtmrs = [bytes(48)] * 4
    for register, _, digest, _ in records:
        rtmrs[register - 1] = hashlib.sha384(rtmrs[register - 1] + digest).digest()
    assert rtmrs == td.rtmrs
    line = records[3][3].removeprefix(b"kernel_cmdline: ")
    assert line == CMDLINE.encode()
    assert records[3][2] == hashlib.sha384(line).digest()


# -- accepting memory ------------------------------------------------------------------------------


def test_all_memory_is_accepted_once_in_large_steps() -> None:
    td = started(boot())
    assert td.accepted == [(at, at + LARGE) for at in range(0, MEMORY, LARGE)]


def test_regions_in_small_pages_are_accepted_page_by_page() -> None:
    td = started(boot(), small={0, 3 * LARGE})
    assert len(td.accepted) == 30 + 2 * 512
    assert sum(end - start for start, end in td.accepted) == MEMORY


def test_memory_that_is_no_whole_number_of_large_pages() -> None:
    odd = MEMORY + 5 * PAGE
    td = started(boot(memory=odd))
    assert td.accepted[-1] == (odd - PAGE, odd)
    assert sum(end - start for start, end in td.accepted) == odd


def test_ranges_that_begin_between_large_pages() -> None:
    plan = boot()
    info = bytearray(next(page.data for page in plan.pages if page.gpa == BOOT_INFO_GPA))
    edge = LARGE - PAGE
    struct.pack_into("<I", info, 8, 2)
    struct.pack_into("<QQQQ", info, 64, 0, edge, edge, MEMORY - edge)
    td = started(replace_page(plan, BOOT_INFO_GPA, bytes(info)))
    small = [(at, at + PAGE) for at in range(0, LARGE, PAGE)]
    assert td.accepted == small + [(at, at + LARGE) for at in range(LARGE, MEMORY, LARGE)]


def test_busy_means_again() -> None:
    td = started(boot(), busy=3)
    assert td.leaves[6] == 32 * 4
    assert td.leaves[2] == 5 * 4


@pytest.mark.parametrize("page", [0, 5 * PAGE, 0x1000000, MEMORY - PAGE])
def test_a_page_that_is_already_there_is_an_attack(page: int) -> None:
    region = page // LARGE * LARGE
    with pytest.raises(FatalError, match=f"accepted before us: {region:016x}"):
        started(boot(), sneaked={page})
    with pytest.raises(FatalError, match=f"accepted before us: {page:016x}"):
        started(boot(), sneaked={page}, small={region})


def test_memory_that_cannot_be_accepted() -> None:
    plan = boot()
    # The page at 4 KiB of the boot information's range table is not page-aligned: the module refuses.
    info = bytearray(next(page.data for page in plan.pages if page.gpa == BOOT_INFO_GPA))
    struct.pack_into("<QQ", info, 64, 0x800, PAGE)
    with pytest.raises(FatalError, match="cannot be accepted: 0000000000000800"):
        started(replace_page(plan, BOOT_INFO_GPA, bytes(info)))


# -- a hypervisor that lies ------------------------------------------------------------------------


def replace_page(plan: DirectBoot, gpa: int, data: bytes) -> DirectBoot:
    pages = tuple(dataclasses.replace(page, data=data) if page.gpa == gpa else page for page in plan.pages)
    return dataclasses.replace(plan, pages=pages)


@pytest.mark.parametrize(
    ("index", "name"),
    [(0, "boot parameters"), (1, "ACPI tables"), (2, "kernel"), (3, "command line"), (4, "initrd")],
)
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_flipped_bit_in_anything_shared(index: int, name: str, place: str) -> None:
    plan = boot(random.Random(3).randbytes(5000))
    data = bytearray(plan.shared[index].data)
    data[0 if place == "first" else -1] ^= 0x10
    shared = list(plan.shared)
    shared[index] = dataclasses.replace(shared[index], data=bytes(data))
    td = model(dataclasses.replace(plan, shared=tuple(shared)))
    with pytest.raises(FatalError, match=f"not what was measured: {name}$"):
        td.start(plan.kernel_entry)
    assert td.leaves[2] == index, "nothing wrong may reach an RTMR"


def test_no_shared_byte_is_read_twice() -> None:
    """Else the hypervisor could show one thing to the hash and another to the copy."""
    plan = boot(random.Random(4).randbytes(1000), make_bzimage(random.Random(5).randbytes(3000)))
    td = model(plan)
    seen: set[int] = set()
    again: list[int] = []

    def on_read(_: Uc, __: int, address: int, size: int, ___: int, ____: object) -> None:
        touched = set(range(address, address + size))
        again.extend(touched & seen)
        seen.update(touched)

    first, last = offsets(plan)[0], offsets(plan)[-1] + 1000
    td.uc.hook_add(UC_HOOK_MEM_READ, on_read, begin=SHARED_BIT | first, end=SHARED_BIT | last)
    td.start(plan.kernel_entry)
    assert not again
    assert len(seen) == sum(len(blob.data) for blob in plan.shared)


def test_changes_after_the_copy_come_too_late() -> None:
    plan = boot(b"original" * 100)
    td = model(plan)

    def spoil(leaf: int) -> None:
        if leaf == 2:  # each extension follows its copy
            index = td.leaves[2]
            td.uc.mem_write(SHARED_BIT | offsets(plan)[index], b"\xee" * len(plan.shared[index].data))

    td.before_tdcall = spoil
    td.start(plan.kernel_entry)
    assert tuple(td.rtmrs) == plan.rtmrs
    assert td.read(COMMAND_LINE_GPA, len(CMDLINE)) == CMDLINE.encode()


def test_junk_in_the_pages_that_nobody_measures() -> None:
    plan = boot()
    junk = random.Random(6)
    pages = tuple(
        page if page.measured else PrivatePage(page.gpa, junk.randbytes(PAGE), measured=False)
        for page in plan.pages
    )
    td = started(dataclasses.replace(plan, pages=pages))
    assert tuple(td.rtmrs) == plan.rtmrs
    assert td.read(MAILBOX_GPA, PAGE) == bytes(PAGE)


def test_a_boot_information_page_that_is_not_one() -> None:
    with pytest.raises(FatalError, match="no boot information"):
        started(replace_page(boot(), BOOT_INFO_GPA, bytes(PAGE)))


# -- page tables -----------------------------------------------------------------------------------


def leaves_of(td: TdModel) -> dict[int, tuple[int, bool, bool]]:
    """linear address of every 1 GiB page → (physical, writable, executable), walked by hand."""
    found = {}
    pml4 = struct.unpack("<512Q", td.read(td.register(x.UC_X86_REG_CR3), PAGE))
    for i, upper in enumerate(pml4):
        if not upper & 1:
            assert upper == 0
            continue
        for j, entry in enumerate(struct.unpack("<512Q", td.read(upper & 0xFFFFFFFFFF000, PAGE))):
            if entry & 1:
                assert entry & 0x80, "only pages of 1 GiB are expected"
                linear = i << 39 | j << 30
                linear |= 0xFFFF << 48 if linear >> 47 else 0
                physical = entry & 0xFFFFFC0000000
                found[linear] = (physical, bool(entry & 2), not entry >> 63)
    return found


@pytest.mark.parametrize("gpaw", [48, 52, GPAW])
def test_page_tables_map_private_memory_and_the_shared_window_and_no_more(gpaw: int) -> None:
    plan = boot()
    td = model(plan, gpaw=gpaw)

    class Stop(Exception):
        pass

    def stop(_: int) -> None:
        raise Stop

    td.before_tdcall = stop
    with pytest.raises(Stop):
        td.start()
    pages = leaves_of(td)
    shared_bit = 1 << (gpaw - 1)
    expected = {i << 30: (i << 30, True, True) for i in range(4)}
    window = 0xFFFF800000000000
    expected |= {window + (i << 30): (i << 30 | shared_bit, True, False) for i in range(512)}
    assert pages == expected


# -- other vCPUs -----------------------------------------------------------------------------------


def test_another_vcpu_waits_for_the_first() -> None:
    td = model(boot())
    td.reset(vcpu=1)
    td.run(count=2000)
    assert SHIM_GPA <= td.register(x.UC_X86_REG_RIP) < 1 << 32
    assert td.register(x.UC_X86_REG_CR3) == 0
    assert not td.leaves


def test_another_vcpu_follows_the_mailbox_and_nothing_else() -> None:
    plan = boot()
    td = started(plan)
    td.reset(vcpu=3)
    td.run(count=500)

    def parked() -> bool:
        return SHIM_GPA <= td.register(x.UC_X86_REG_RIP) < 1 << 32

    assert parked()
    td.uc.mem_write(MAILBOX_GPA, struct.pack("<HHIQ", 1, 0, 2, 0x9A000))
    td.run(count=500)
    assert parked(), "APIC id 2 was meant"
    td.uc.mem_write(MAILBOX_GPA, struct.pack("<HHIQ", 0, 0, 3, 0x9A000))
    td.run(count=500)
    assert parked(), "there was no command"
    td.uc.mem_write(MAILBOX_GPA, struct.pack("<HHIQ", 1, 0, 3, 0x9A000))
    td.run(until=0x9A000, count=500)
    assert td.register(x.UC_X86_REG_RIP) == 0x9A000
    assert td.register(x.UC_X86_REG_CS) == 0x10
    assert td.read(MAILBOX_GPA, 2) == b"\0\0", "the command is acknowledged"

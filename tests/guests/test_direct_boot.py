"""The plan of a direct boot: read back by offsets of Linux's documents, and refusals in clear words."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.guests.direct_boot import DirectBoot, build_direct_boot, build_tiny_boot
from swtdx.guests.errors import DoesNotFit, GuestError
from swtdx.guests.memory_map import ACPI_BYTES, ACPI_GPA, BOOT_INFO_GPA, EVENT_LOG_GPA, MAILBOX_GPA
from tests.guests.bzimage import make_bzimage

MIB = 1 << 20
INIT_SIZE = 0x37DD000
KERNEL = make_bzimage(init_size=INIT_SIZE)


@dataclass(frozen=True)
class Acpi:
    tables: tuple[tuple[int, bytes], ...] = ((ACPI_GPA + 64, b"T" * 100), (ACPI_GPA, b"R" * 36))
    rsdp_gpa: int = ACPI_GPA


def plan(
    *,
    kernel: bytes = KERNEL,
    initrd: bytes = b"i" * 5000,
    cmdline: str = "quiet",
    memory: int = 512 * MIB,
    gpaw: int = 48,
    acpi: Acpi | None = None,
) -> DirectBoot:
    return build_direct_boot(kernel, initrd, cmdline, memory, gpaw, acpi or Acpi())


def zero_page(boot: DirectBoot) -> bytes:
    return boot.shared[0].data


def e820(page: bytes) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]


def test_the_zero_page_by_the_documents_offsets() -> None:
    page = zero_page(plan())
    assert len(page) == 4096
    assert page[0x1F1:0x26C].replace(b"\0", b"")[:1] == b"\x04"  # setup_sects: the header is there
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x210] == 0xFF  # type_of_loader
    assert page[0x1EF] == 0  # sentinel
    assert struct.unpack_from("<Q", page, 0x70) == (ACPI_GPA,)  # acpi_rsdp_addr
    ramdisk, size = struct.unpack_from("<II", page, 0x218)
    assert size == 5000
    assert ramdisk % 4096 == 0
    assert ramdisk + size <= 512 * MIB
    (cmdline,) = struct.unpack_from("<I", page, 0x228)
    assert any(
        kind == 1 and base <= cmdline and cmdline + 2048 <= base + length for base, length, kind in e820(page)
    )


def test_the_memory_map() -> None:
    entries = e820(zero_page(plan(memory=3 << 30)))
    assert entries == sorted(entries)
    for (base, length, _), (after, _, _) in itertools.pairwise(entries):
        assert base + length <= after
    ram = [(base, base + length) for base, length, kind in entries if kind == 1]
    assert ram[0] == (0, 0xA0000)
    assert ram[1][1] == 2 << 30
    assert ram[2] == (4 << 30, 5 << 30)
    kinds = {base: kind for base, _, kind in entries}
    assert kinds[ACPI_GPA] == 3
    # Linux would map a reserved area as shared memory: what it reads back must be ACPI NVS.
    assert kinds[EVENT_LOG_GPA] == 4
    assert kinds[MAILBOX_GPA] == 4


@given(
    memory=st.integers(96 * MIB, 6 << 30).map(lambda size: size // 4096 * 4096),
    initrd=st.integers(0, 8 * MIB),
    gpaw=st.sampled_from([48, 52]),
)
def test_nothing_overlaps(memory: int, initrd: int, gpaw: int) -> None:
    boot = plan(memory=memory, initrd=bytes(initrd), gpaw=gpaw)
    ram = [(item.base, item.end) for item in boot.ram]
    assert sum(end - base for base, end in ram) == memory
    pages = [page.gpa for page in boot.pages]
    assert len(set(pages)) == len(pages)
    assert not any(base <= page < end for page in pages for base, end in ram)
    assert all(len(page.data) == 4096 and page.gpa % 4096 == 0 for page in boot.pages)
    shared_bit = 1 << (gpaw - 1)
    assert all(blob.gpa & shared_bit and blob.gpa % 4096 == 0 for blob in boot.shared)
    staged = sorted((blob.gpa ^ shared_bit, (blob.gpa ^ shared_bit) + len(blob.data)) for blob in boot.shared)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(staged))
    # Staged outside of RAM and of the 32-bit device window, so that no GPA has two meanings.
    assert staged[0][0] >= max(end for _, end in ram)
    assert staged[0][0] >= 4 << 30
    ramdisk, size = struct.unpack_from("<II", zero_page(boot), 0x218)
    assert size == initrd
    if initrd:
        assert boot.kernel_entry - 0x200 + INIT_SIZE <= ramdisk
        assert ramdisk + size <= min(memory, 2 << 30)


def test_only_the_hashes_in_the_measured_page_depend_on_the_content() -> None:
    one, two = plan(initrd=b"1" * 100), plan(initrd=b"2" * 100)
    changed = [a.gpa for a, b in zip(one.pages, two.pages, strict=True) if a != b]
    assert changed == [BOOT_INFO_GPA]
    assert one.rtmrs[2] != two.rtmrs[2]
    assert one.rtmrs[0] == two.rtmrs[0]
    assert next(page.gpa for page in one.pages if page.measured) == BOOT_INFO_GPA
    assert plan() == plan()


def test_a_kernel_that_prefers_a_low_address_is_moved() -> None:
    boot = plan(kernel=make_bzimage(pref_address=0x100000))
    assert boot.kernel_entry == 0x1000200
    fixed = bytearray(make_bzimage(pref_address=0x100000))
    fixed[0x234] = 0  # relocatable_kernel
    with pytest.raises(DoesNotFit, match="must be loaded at 0x100000"):
        plan(kernel=bytes(fixed))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": 64 * MIB}, r"64 MiB of memory are too few .* at least \d+ MiB"),
        ({"memory": 512 * MIB + 1}, "whole number of 4 KiB pages"),
        ({"memory": 4096}, "too few for any kernel"),
        ({"memory": 600 << 30}, "more than 511 GiB"),
        ({"cmdline": "x" * 2048}, "2048 bytes; kernel takes 2047"),
        ({"cmdline": "café"}, "plain ASCII, without 'é'"),
        ({"cmdline": "a\0b"}, "NUL"),
        ({"gpaw": 40}, "48 or 52"),
        ({"acpi": Acpi(((ACPI_GPA, bytes(100)), (ACPI_GPA + 99, b"x")))}, "overlaps another"),
        ({"acpi": Acpi(((ACPI_GPA - 1, b"x"),))}, "ACPI table at 0xfffff"),
        ({"acpi": Acpi(((ACPI_GPA, bytes(ACPI_BYTES + 1)),))}, "leaves"),
    ],
)
def test_refusals(options: dict[str, object], words: str) -> None:
    with pytest.raises(GuestError, match=words):
        plan(**options)  # type: ignore[arg-type]


def test_the_smallest_memory_in_the_message_is_enough() -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(memory=16 * MIB)
    needed = int(str(caught.value).split("at least ")[1].split(" MiB")[0])
    assert plan(memory=needed * MIB)
    with pytest.raises(DoesNotFit):
        plan(memory=(needed - 2) * MIB)


def test_the_tiny_guest_needs_no_memory() -> None:
    boot = build_tiny_boot()
    assert boot.ram == ()
    assert boot.shared == ()
    assert [page.measured for page in boot.pages] == [False] * 4 + [True]
    assert boot.pages[-1].gpa == (1 << 32) - 4096

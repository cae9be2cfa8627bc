"""Who sees what: the rules of design §3 and structures.md §10, one by one."""

from __future__ import annotations

import pytest

from swtdx.machine.memory import (
    DEVICE,
    HOST,
    SEAM,
    TD,
    AddressError,
    AddressMap,
    BusAbort,
    MachineCheck,
    PhysicalMemory,
    ReservedBitFault,
)

from .conftest import SEED, SHARED_1, SHARED_2, SHARED_UNPROGRAMMED, TD_A, TD_B, build

PAGE_A = 0x20_0000
SECRET = b"a secret of sixty-four bytes: " + bytes(range(34))


def give_page(memory: PhysicalMemory, hpa: int, keyid: int, data: bytes = SECRET) -> None:
    """Hand a page to a TD as the module does, and let the TD write to it."""
    pa = memory.addresses.join(hpa, keyid)
    memory.direct_zero(pa, 4096)
    memory.write(pa, data, TD)


def test_what_is_written_is_read_back(memory: PhysicalMemory) -> None:
    memory.write(0x1FFD, b"across a page boundary")
    assert memory.read(0x1FFD, 22) == b"across a page boundary"
    memory.wbinvd()
    assert memory.read(0x1FFD, 22) == b"across a page boundary"


def test_untouched_memory_is_zero_under_keyid_0_and_noise_under_others(memory: PhysicalMemory) -> None:
    assert memory.read(0x5000, 64) == bytes(64)
    noise = memory.read(memory.addresses.join(0x5000, SHARED_1), 64)
    assert len(set(noise)) > 16
    # A KeyID that was never programmed uses the platform's TME key, as KeyID 0 does.
    assert memory.read(memory.addresses.join(0x5000, SHARED_UNPROGRAMMED), 64) == bytes(64)


@pytest.mark.parametrize("flushed", [False, True])
def test_host_reads_zeros_from_a_tds_line_and_does_not_disturb_it(
    memory: PhysicalMemory, flushed: bool
) -> None:
    give_page(memory, PAGE_A, TD_A)
    if flushed:
        memory.wbinvd()
    for keyid in (0, SHARED_1, SHARED_UNPROGRAMMED):
        assert memory.read(memory.addresses.join(PAGE_A, keyid), 4096) == bytes(4096)
    assert memory.read(memory.addresses.join(PAGE_A, TD_A), 64, TD) == SECRET


@pytest.mark.parametrize("flushed", [False, True])
def test_a_host_write_poisons_just_that_line(memory: PhysicalMemory, flushed: bool) -> None:
    give_page(memory, PAGE_A, TD_A, SECRET * 64)
    if flushed:
        memory.wbinvd()
    memory.write_u64(PAGE_A + 0x88, 0x1122334455667788)
    assert memory.read_u64(PAGE_A + 0x88) == 0x1122334455667788
    assert memory.read(PAGE_A + 0x80, 8) == bytes(8)  # the rest of the line: what the host could see
    private = memory.addresses.join(PAGE_A, TD_A)
    for line in range(64):
        if line == 2:
            with pytest.raises(MachineCheck) as poison:
                memory.read(private + 64 * line, 8, TD)
            assert (poison.value.hpa, poison.value.keyid) == (PAGE_A + 0x80, TD_A)
            assert poison.value.kind == "owner"
        else:
            assert memory.read(private + 64 * line, 64, TD) == SECRET
    with pytest.raises(MachineCheck):
        memory.write(private + 0x90, b"x", TD)  # a partial write reads first
    with pytest.raises(MachineCheck):
        memory.map_page(PAGE_A, TD_A)


def test_movdir64b_cures_poison(memory: PhysicalMemory) -> None:
    give_page(memory, PAGE_A, TD_A)
    memory.write_u64(PAGE_A, 1)
    private = memory.addresses.join(PAGE_A, TD_A)
    memory.direct_store(private, bytes(range(64)))
    assert memory.read(private, 64, TD) == bytes(range(64))
    assert memory.read(PAGE_A, 64) == bytes(64)


def test_movdir64b_by_the_host_takes_the_line(memory: PhysicalMemory) -> None:
    give_page(memory, PAGE_A, TD_A, SECRET * 2)
    memory.direct_store(PAGE_A + 64, bytes(range(64)), HOST)
    assert memory.read(PAGE_A + 64, 64) == bytes(range(64))
    private = memory.addresses.join(PAGE_A, TD_A)
    assert memory.read(private, 64, TD) == SECRET
    with pytest.raises(MachineCheck):
        memory.read(private + 64, 1, TD)


def test_one_tds_key_does_not_open_anothers_line(memory: PhysicalMemory) -> None:
    give_page(memory, PAGE_A, TD_A)
    other = memory.addresses.join(PAGE_A, TD_B)
    if memory.integrity.value == "cryptographic":
        with pytest.raises(MachineCheck) as poison:
            memory.read(other, 64, SEAM)
        assert poison.value.kind == "mac"
    else:  # the owner bit is right, and nothing else tells
        noise = memory.read(other, 64, SEAM)
        assert noise != SECRET
        assert len(set(noise)) > 16


def test_shared_keyids_read_each_others_lines_as_noise(memory: PhysicalMemory) -> None:
    memory.write(memory.addresses.join(0x7000, SHARED_1), SECRET)
    noise = memory.read(memory.addresses.join(0x7000, SHARED_2), 64)
    assert noise != SECRET
    assert len(set(noise)) > 16
    assert memory.read(memory.addresses.join(0x7000, SHARED_1), 64) == SECRET


def test_private_keyids_are_reserved_bits_outside_seam(memory: PhysicalMemory) -> None:
    private = memory.addresses.join(PAGE_A, TD_A)
    give_page(memory, PAGE_A, TD_A)
    for attempt in (
        lambda: memory.read(private, 8),
        lambda: memory.write(private, b"x"),
        lambda: memory.read_u64(private),
        lambda: memory.write_u64(private, 1),
        lambda: memory.direct_store(private, bytes(64), HOST),
        lambda: memory.direct_zero(private, 4096, HOST),
        lambda: memory.clflush(private),
        lambda: memory.acquire(PAGE_A, 4096, TD_A, HOST),
    ):
        with pytest.raises(ReservedBitFault) as fault:
            attempt()
        assert (fault.value.hpa, fault.value.keyid) == (PAGE_A, TD_A)
    assert memory.read(private, 64, DEVICE) == b"\xff" * 64
    memory.write(private, b"x" * 64, DEVICE)
    memory.direct_store(private, b"x" * 64, DEVICE)
    assert memory.read(private, 64, TD) == SECRET


def test_keyids_that_do_not_exist_and_bits_beyond_maxpa(memory: PhysicalMemory) -> None:
    small = PhysicalMemory([(0, 1 << 20)], SEED, AddressMap(52, 6, 10, 10))
    for requestor in (HOST, SEAM, TD):
        with pytest.raises(ReservedBitFault):
            small.read(40 << 46, 8, requestor)
    assert small.read(40 << 46, 8, DEVICE) == b"\xff" * 8
    with pytest.raises(ReservedBitFault):
        memory.read(1 << 52, 8)


def test_the_seam_range_is_closed_to_all_but_seam(memory: PhysicalMemory) -> None:
    base, size = 0x80_0000, 0x20_0000
    memory.write(base + 64, b"the BIOS was here")
    memory.set_seamrr(base, size)
    memory.write(base, b"module", SEAM)
    for requestor in (HOST, TD, DEVICE):
        assert memory.read(base, 64, requestor) == b"\xff" * 64
        memory.write(base, b"attack", requestor)
        memory.write_u64(base, 0, requestor)
        memory.direct_store(base, bytes(64), requestor)
        memory.direct_zero(base, size, requestor)
        # An access across the border is refused only inside.
        assert memory.read(base - 8, 16, requestor) == bytes(8) + b"\xff" * 8
    with pytest.raises(BusAbort):
        memory.acquire(base, 4096, 0, TD)
    with pytest.raises(BusAbort):
        memory.acquire(base - 4096, 8192, 0, TD)
    assert memory.read(base, 6, SEAM) == b"module"
    assert memory.read(base + 64, 17, SEAM) == b"the BIOS was here"
    assert memory.seamrr == (base, size)
    with pytest.raises(AddressError, match="locked"):
        memory.set_seamrr(base, size)


def test_holes_in_the_memory_map_abort() -> None:
    memory = PhysicalMemory([(0, 0xA0000), (0x10_0000, 0x10_0000)], SEED)
    assert memory.read(0x9FFF8, 16) == bytes(8) + b"\xff" * 8
    memory.write(0x9FFF8, b"0123456789abcdef")
    assert memory.read(0x9FFF8, 16) == b"01234567" + b"\xff" * 8
    assert memory.read(0xFFFF8, 16, DEVICE) == b"\xff" * 8 + bytes(8)
    assert memory.read(1 << 45, 8) == b"\xff" * 8
    assert memory.read_u64(1 << 45) == (1 << 64) - 1
    memory.direct_zero(0x80000, 0x100000, HOST)
    with pytest.raises(BusAbort):
        memory.map_page(0xA0000, 0)
    with pytest.raises(BusAbort):
        memory.acquire(0x9F000, 0x2000, 0)


@pytest.mark.parametrize(
    ("ranges", "complaint"),
    [
        ([], "at least one"),
        ([(0, 4095)], "not aligned"),
        ([(0, 0)], "empty"),
        ([(4096, 8192), (8192, 4096)], "overlaps"),
        ([(8192, 4096), (0, 4096)], "out of order"),
        ([(0, 1 << 47)], "HPA bit 45"),
    ],
)
def test_impossible_memory_maps_are_refused(ranges: list[tuple[int, int]], complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        PhysicalMemory(ranges, SEED)


def test_misuse_is_named(memory: PhysicalMemory) -> None:
    with pytest.raises(AddressError, match="aligned"):
        memory.read_u64(4)
    with pytest.raises(AddressError, match="too large"):
        memory.write_u64(8, 1 << 64)
    with pytest.raises(AddressError, match="64-byte lines"):
        memory.direct_store(32, bytes(64))
    with pytest.raises(AddressError, match="64-byte lines"):
        memory.direct_zero(0, 100)
    with pytest.raises(AddressError, match="whole pages"):
        memory.map_page(64, 0)
    with pytest.raises(ReservedBitFault):
        memory.map_page(0, 64)
    with pytest.raises(AddressError, match="cannot read"):
        memory.read(0, -1)
    assert memory.read(0, 0) == b""
    memory.write(0, b"")


def test_tme_is_activated_once() -> None:
    memory = PhysicalMemory([(0, 1 << 20)], SEED, AddressMap.without_tme())
    memory.write(0, b"before")
    with pytest.raises(ReservedBitFault):
        memory.read(1 << 52, 8)
    memory.activate(AddressMap(52, 6, 31, 32))
    assert memory.read(0, 6) == bytes(6)
    memory.write(0, b"after")
    assert memory.read(0, 5) == b"after"
    with pytest.raises(AddressError, match="locked"):
        memory.activate(AddressMap())


def test_two_machines_share_nothing() -> None:
    one, other = build(), build()
    one.write(0, b"one")
    assert other.read(0, 3) == bytes(3)


@pytest.mark.parametrize(
    ("bits", "shared", "private", "works"),
    [
        (6, 31, 32, True),
        (6, 31, 33, False),
        (6, -1, 32, False),
        (6, 31, -1, False),
        (6, 63, 0, True),
        (6, 64, 0, False),
    ],
)
def test_keyids_fit_into_their_bits(bits: int, shared: int, private: int, works: bool) -> None:
    if works:
        assert AddressMap(52, bits, shared, private).keyids == 1 + shared + private
    else:
        with pytest.raises(AddressError):
            AddressMap(52, bits, shared, private)


def test_a_seam_range_of_nothing(memory: PhysicalMemory) -> None:
    for size in (0, -4096):
        with pytest.raises(AddressError):
            memory.set_seamrr(0x10_0000, size)


def test_a_line_that_is_flushed_is_encrypted_with_its_own_key(memory: PhysicalMemory) -> None:
    """Also where the page had waited for another key before."""
    one, two = (memory.addresses.join(PAGE_A, keyid) for keyid in (SHARED_1, SHARED_2))
    for pa in (one, two, one):
        memory.write(pa, SECRET)
        memory.clflush(pa)
        assert memory.read(pa, 64) == SECRET
        memory.wbinvd()
        assert memory.read(pa, 64) == SECRET

"""The address spaces: claims, widths, and what nobody answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.devices.bus import BusError, MmioSpace, PortSpace


class Memory:
    """A device that is its registers; it notes the widths at which it was reached."""

    def __init__(self, length: int) -> None:
        self.data = bytearray(length)
        self.widths: set[int] = set()

    def read(self, offset: int, size: int) -> int:
        self.widths.add(size)
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        self.widths.add(size)
        self.data[offset : offset + size] = value.to_bytes(size, "little")


def test_what_nobody_claims_reads_as_ones_and_swallows_writes() -> None:
    ports, mmio = PortSpace(), MmioSpace()
    assert [ports.read(0x2F8, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]
    assert mmio.read(0xFED0_0000, 8) == 0xFFFF_FFFF_FFFF_FFFF
    ports.write(0x80, 1, 0)
    mmio.write(0xFED0_0000, 8, 0)


def test_claims_that_meet_are_refused_by_name() -> None:
    ports = PortSpace()
    ports.register(0x3F8, 8, Memory(8), name="COM1")
    ports.register(0x400, 8, Memory(8), name="next door")
    for base, length in ((0x3F0, 9), (0x3FF, 1), (0x3F8, 8), (0x300, 0x200)):
        with pytest.raises(BusError, match="intruder and COM1"):
            ports.register(base, length, Memory(8), name="intruder")
    with pytest.raises(BusError, match="not inside"):
        ports.register(0xFFFF, 2, Memory(8), name="too far")
    with pytest.raises(BusError, match="include 1 byte"):
        ports.register(0x500, 8, Memory(8), name="wide only", widths=(4,))
    assert [claim.name for claim in ports.claims] == ["COM1", "next door"]


@pytest.mark.parametrize(("address", "size"), [(0, 3), (0, 8), (0x10000, 1), (0xFFFF, 2), (-1, 1)])
def test_impossible_accesses_are_named(address: int, size: int) -> None:
    ports = PortSpace()
    with pytest.raises(BusError):
        ports.read(address, size)
    with pytest.raises(BusError):
        ports.write(address, size, 0)


@given(
    address=st.integers(0x0F8, 0x112),
    size=st.sampled_from([1, 2, 4, 8]),
    value=st.integers(0, (1 << 64) - 1),
    widths=st.sampled_from([(1,), (1, 2), (1, 2, 4), (1, 2, 4, 8)]),
)
def test_bytes_land_where_they_belong(address: int, size: int, value: int, widths: tuple[int, ...]) -> None:
    """Two neighbours with a hole between them, and accesses that run over the edges."""
    mmio = MmioSpace()
    low, high = Memory(8), Memory(8)
    mmio.register(0x100, 8, low, name="low", widths=widths)
    mmio.register(0x10A, 8, high, name="high", widths=widths)
    value &= (1 << 8 * size) - 1
    mmio.write(address, size, value)
    picture = dict.fromkeys(range(0xE0, 0x130), 0xFF)
    picture |= {0x100 + at: 0 for at in range(8)} | {0x10A + at: 0 for at in range(8)}
    for step, byte in enumerate(value.to_bytes(size, "little")):
        if picture[address + step] == 0:
            picture[address + step] = byte
    assert bytes(low.data) + bytes(high.data) == bytes(
        picture[at] for at in (*range(0x100, 0x108), *range(0x10A, 0x112))
    )
    assert mmio.read(address, size).to_bytes(size, "little") == bytes(
        picture[address + step] for step in range(size)
    )
    assert low.widths | high.widths <= set(widths)

"""The board of a q35 under a guest that writes anything anywhere: ports, configuration space, fw_cfg, MMIO.

Nothing raises, every answer fits its size, and what the board keeps does not grow.  1,000 inputs of each of a
few seeds here; ``SWTDX_HOSTILE=100000`` makes more of one.
"""

from __future__ import annotations

import os
import random
import struct
import tracemalloc

import pytest

from swtdx.devices.board import PCI_WINDOW_END, Board, BoardConfig, build_board
from swtdx.devices.dma import BufferDma
from swtdx.devices.fw_cfg import FwCfgContents
from swtdx.devices.parts import DebugConsole

MEMORY = 1 << 20
COUNT = int(os.environ.get("SWTDX_HOSTILE", "1000"))
#: Ports that lead to something, which random ones seldom do.
PORTS = (
    0x40,
    0x43,
    0x70,
    0x71,
    0x3F8,
    0x402,
    0x510,
    0x511,
    0x514,
    0x518,
    0x600,
    0x604,
    0x608,
    0xCF8,
    0xCF9,
    0xCFC,
)
#: Power off and restart end a run; here they are only counted.
ENDS: list[str] = []


def board_of(memory: bytearray) -> Board:
    config = BoardConfig(
        apic_ids=(0, 1),
        chipset=True,
        ioapic=True,
        fw_cfg=FwCfgContents({0x08: (9).to_bytes(4, "little"), 0x11: b"123456789"}, {"opt/x": b"x" * 5000}),
        ram=(512 << 20, 0),
        more=(lambda: DebugConsole(lambda _data: None),),
    )
    return build_board(
        config,
        BufferDma(memory),
        lambda _address, _data: None,
        console_out=lambda _data: None,
        power_off=lambda: ENDS.append("off"),
        restart=lambda: ENDS.append("restart"),
        clock=lambda: 1_000_000,
    )


def step(board: Board, memory: bytearray, chance: random.Random) -> None:
    """One input."""
    value = chance.choice((0, 1, 0xFF, 0xFFFFFFFF, 1 << 63, chance.getrandbits(64), chance.getrandbits(20)))
    match chance.randrange(6):
        case 0:
            port, size = chance.choice((*PORTS, chance.randrange(0x10000 - 4))), chance.choice((1, 2, 4))
            port += chance.choice((0, 0, 0, 1, 2, 3))
            if chance.random() < 0.5:
                board.ports.write(port, size, value)
            else:
                assert 0 <= board.ports.read(port, size) < 1 << 8 * size
        case 1:
            # Configuration space by mechanism 1.
            bus, slot = chance.choice((0, 0, 0, 1, 255)), chance.choice((0, 1, 31, chance.randrange(32)))
            register = chance.randrange(64) << 2
            board.ports.write(
                0xCF8, 4, 1 << 31 | bus << 16 | slot << 11 | chance.randrange(8) << 8 | register
            )
            size = chance.choice((1, 2, 4))
            if chance.random() < 0.5:
                board.ports.write(0xCFC + chance.randrange(4), size, value)
            else:
                assert 0 <= board.ports.read(0xCFC, size) < 1 << 8 * size
        case 2:
            # fw_cfg by DMA, with a descriptor anywhere and of any kind.
            at = chance.choice((0, 0x1000, MEMORY - 16, MEMORY - 8, chance.getrandbits(40)))
            length = chance.choice((0, 1, 9, 4096, 1 << 20, 1 << 26, 0xFFFFFFFF))
            target = chance.choice((0x2000, MEMORY - 1, 1 << 40, value))
            control = (
                chance.choice((2, 8 | 2, 4, 8 | 4, 16, 31, value & 0xFFFF)) | chance.randrange(0x40) << 16
            )
            if at + 16 <= MEMORY:
                memory[at : at + 16] = struct.pack(">IIQ", control, length, target & (1 << 64) - 1)
            board.ports.write(0x514, 4, int.from_bytes((at >> 32).to_bytes(4, "little"), "big"))
            board.ports.write(0x518, 4, int.from_bytes((at & 0xFFFFFFFF).to_bytes(4, "little"), "big"))
        case 3:
            board.ports.write(0x510, 2, chance.choice((0, 1, 0x19, chance.randrange(0x40), value & 0xFFFF)))
            assert all(board.ports.read(0x511, 1) < 256 for _ in range(4))
        case _:
            # The PCI window (ECAM may be anywhere in it), and the I/O APIC.
            base = chance.choice((0xFEC00000, 0xFEC00010, 0xE0000000, board.pci.ecam[0] or 0xE0000000))
            address = chance.choice(
                (base + chance.randrange(1 << 20), PCI_WINDOW_END - 4096 + chance.randrange(4096))
            )
            size = chance.choice((1, 2, 4, 8))
            if chance.random() < 0.5:
                board.mmio.write(address, size, value)
            else:
                assert 0 <= board.mmio.read(address, size) < 1 << 8 * size


@pytest.mark.parametrize("seed", range(4 if COUNT == 1000 else 1))
def test_nothing_raises_and_nothing_grows(seed: int) -> None:
    memory = bytearray(MEMORY)
    board, chance = board_of(memory), random.Random(seed)
    tracemalloc.start()
    try:
        for _ in range(COUNT // 4):
            step(board, memory, chance)
        ENDS.clear()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(COUNT):
            step(board, memory, chance)
            board.poll()
        ends = len(ENDS)
        ENDS.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 256 << 10, f"{grown} bytes more after {COUNT} inputs"
    assert ends < COUNT

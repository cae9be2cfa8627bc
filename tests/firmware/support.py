"""What the tests of the loader chain share.  Structures are read at the offsets of structures.md."""

from __future__ import annotations

from swtdx.firmware.bios import Bios, BiosConfig
from swtdx.firmware.image import SignedImage
from swtdx.firmware.memory_map import dram_ranges
from swtdx.machine.machine import Machine, MachineConfig
from swtdx.machine.memory import AddressMap, PhysicalMemory, Requestor
from swtdx.platform import Platform, PlatformConfig

MIB = 1 << 20
PAGE = 4096
RAX, RCX, RDX = 0, 1, 2
SEAM = Requestor.SEAM

#: P-SEAMLDR leaves (seamcall.md §8) and statuses (status-codes.md §6).
INFO, INSTALL, SHUTDOWN, SEAMINFO = (0x8000000000000000 + number for number in range(4))
SUCCESS = 0
EBADPARAM = 0x8000000000000000
EBADCALL = 0x8000000000000003
EBADHANDOFF = 0x8000000000000004
ENOMEM = 0x8000000000010002
EUNSPECERR = 0x8000000000010003
EUNSUPCPU = 0x8000000000010004
EBADSIG = 0x8000000000020000
EBADHASH = 0x8000000000020001

#: Where the tests keep what they show to the loader.
PARAMS, SIGSTRUCT, MODULE = 16 * MIB, 17 * MIB, 18 * MIB


def u(data: bytes, offset: int, size: int) -> int:
    """A little-endian integer of ``size`` bytes."""
    return int.from_bytes(data[offset : offset + size], "little")


def put(data: bytearray, offset: int, size: int, value: int) -> None:
    data[offset : offset + size] = value.to_bytes(size, "little")


def boot_standin(
    image: SignedImage,
    acm: bytes,
    *,
    packages: int = 1,
    cpus: int = 2,
    memory: int = 256 * MIB,
    load: bool = True,
    bios: BiosConfig | None = None,
    seed: bytes = b"swtdx",
    options: dict[str, object] | None = None,
    **rest: object,
) -> Platform:
    machine = MachineConfig(packages, cpus, memory, seed, "scripted", options or {})
    settings: dict[str, object] = {"module": image, "acm": acm, "load_module": load} | rest
    return Platform.boot(PlatformConfig(machine=machine, bios=bios or BiosConfig(), **settings))  # type: ignore[arg-type]


def bare_machine(packages: int, cpus: int, memory: int, bios: BiosConfig | None = None) -> Machine:
    """A machine after its BIOS: registers programmed, MCHECK not run."""
    config = MachineConfig(packages, cpus, memory, engine="scripted")
    machine = Machine(config, PhysicalMemory(dram_ranges(memory), bytes(32), AddressMap.without_tme()))
    Bios(machine, bios).run()
    return machine


def enter_root(platform: Platform) -> None:
    """VMXON on all processors."""
    for lp in platform.machine.processors:
        lp.write_cr4(lp.cr4 | 1 << 13)
        lp.vmxon()


def call(platform: Platform, leaf: int, rcx: int = 0, processor: int = 0) -> tuple[int, int]:
    """One SEAMCALL in VMX root mode: (RAX, RDX); RDX starts as a value that no leaf returns."""
    lp = platform.machine.processors[processor]
    lp.gpr[RAX], lp.gpr[RCX], lp.gpr[RDX] = leaf, rcx, 0xDEAD
    lp.seamcall()
    assert not lp.cf
    return lp.gpr[RAX], lp.gpr[RDX]


def params(count: int, scenario: int = 0) -> bytearray:
    """A SEAMLDR_PARAMS page for ``count`` module pages at MODULE."""
    page = bytearray(PAGE)
    put(page, 4, 4, scenario)
    put(page, 8, 8, SIGSTRUCT)
    put(page, 120, 8, count)
    for number in range(count):
        put(page, 128 + 8 * number, 8, MODULE + number * PAGE)
    return page


def offer(platform: Platform, image: SignedImage, page: bytes | None = None, scenario: int = 0) -> None:
    """Put a module in memory for INSTALL, with ``page`` as SEAMLDR_PARAMS."""
    memory = platform.machine.memory
    memory.write(PARAMS, params(image.page_count, scenario) if page is None else page)
    memory.write(SIGSTRUCT, image.sigstruct)
    memory.write(MODULE, image.pages)


def install(platform: Platform, pa: int = PARAMS) -> tuple[int, int]:
    """INSTALL on every processor; all but the last succeed, and the last one's (RAX, RDX) count."""
    *first, last = range(len(platform.machine.processors))
    for processor in first:
        assert call(platform, INSTALL, pa, processor) == (SUCCESS, 0)
    return call(platform, INSTALL, pa, last)


def seam_state(platform: Platform) -> tuple[bytes, bytes]:
    """SEAMEXTEND and the whole SEAM range, to see whether anything changed."""
    base, size = platform.machine.memory.seamrr or (0, 0)
    return platform.machine.seam.extend, platform.machine.memory.read(base, size - 2 * MIB, SEAM)


def patched(image: SignedImage, *changes: tuple[int, int, int]) -> SignedImage:
    """``image`` with SIGSTRUCT fields changed (offset, size, value), its signature left as it was."""
    structure = bytearray(image.sigstruct)
    for offset, size, value in changes:
        put(structure, offset, size, value)
    return SignedImage(image.pages, bytes(structure))

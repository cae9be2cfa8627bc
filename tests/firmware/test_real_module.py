"""The TDX Module of this installation through the whole chain: admitted, saved, and under attack."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.arch.td_config import ATTR_DEBUG
from swtdx.devices.board import BoardConfig
from swtdx.firmware.errors import LoaderError
from swtdx.firmware.image import SignedImage
from swtdx.machine.engine.scripted import Read, Script, ScriptedEngine, Tdcall, Write
from swtdx.machine.machine import MachineConfig
from swtdx.machine.memory.dram import Dram
from swtdx.platform import Platform, PlatformConfig, module_image
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.machine_io import MachineIo
from swtdx.vmm.result import EndReason
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig

from .support import EBADHASH, RAX, RCX, RDX, u

MIB, PAGE = 1 << 20, 4096
CODE, RAM, RAM_END = MIB, 2 * MIB, 4 * MIB
SECRET = bytes.fromhex("c1f9a7035be2846d0f3ad8b167592ec4")
ACCEPT, MEM_RD = 6, 12
R8 = 8
#: The upper half of statuses (status-codes.md).
SUCCESS, TD_FATAL, TD_NON_DEBUG = 0, 0xE0000604, 0xC0000605


@pytest.fixture(scope="module")
def module() -> SignedImage:
    return module_image()


def machine_config() -> PlatformConfig:
    return PlatformConfig(machine=MachineConfig(engine="scripted"))


@pytest.fixture
def platform() -> Iterator[Platform]:
    with Platform.boot(machine_config()) as booted:
        yield booted


def test_it_is_measured_and_admitted(platform: Platform, module: SignedImage) -> None:
    summary = platform.summary()["module"]
    assert summary["entry"] == "swtdx.module.entry:TdxModule"
    assert summary["mrseam"] == hashlib.sha384(module.pages).hexdigest()
    assert summary["mrsignerseam"] == "00" * 48
    assert platform.machine.memory.read(192 * MIB, 64)  # nothing raises on the host's side


def test_one_flipped_bit_does_not_load(module: SignedImage) -> None:
    pages = bytearray(module.pages)
    pages[5000] ^= 4
    config = PlatformConfig(
        machine=machine_config().machine, module=SignedImage(bytes(pages), module.sigstruct)
    )
    with pytest.raises(LoaderError, match="not what was signed") as refusal:
        Platform.boot(config)
    assert refusal.value.status == EBADHASH


def seamcall(platform: Platform, leaf: int, rcx: int, rdx: int) -> tuple[int, int]:
    """One SEAMCALL on processor 0, in VMX root mode already: upper half of the status, and R8."""
    lp = platform.machine.processors[0]
    lp.gpr[RAX], lp.gpr[RCX], lp.gpr[RDX] = leaf, rcx, rdx
    lp.seamcall()
    assert not lp.cf
    return lp.gpr[RAX] >> 32, lp.gpr[R8]


@pytest.mark.parametrize("flushed", [False, True])
def test_a_td_survives_in_a_snapshot(platform: Platform, tmp_path: Path, flushed: bool) -> None:
    """Saved with two TDs in it, loaded, saved again: the same bytes; and the copy's module knows both."""
    hypervisor = Hypervisor(platform.host)
    page = InitialPage(CODE, b"measured".ljust(PAGE, b"."))
    debug = Td.build(hypervisor, TdConfig(vcpus=1, attributes=ATTR_DEBUG), [page])
    closed = Td.build(hypervisor, TdConfig(vcpus=1), [page])
    if flushed:
        platform.machine.memory.wbinvd()
    platform.save(tmp_path / "one")
    with Platform.load(tmp_path / "one") as copy:
        copy.save(tmp_path / "two")
        assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()
        for either in (platform, copy):
            status, value = seamcall(either, MEM_RD, CODE, debug.root)
            assert (status, value.to_bytes(8, "little")) == (SUCCESS, b"measured")
            assert seamcall(either, MEM_RD, CODE, closed.root)[0] == TD_NON_DEBUG
            # SYS_INFO_TABLE and the module's data are in SEAM memory, closed as before.
            seam = either.machine.memory.seamrr
            assert seam is not None
            assert either.host.memory.read(seam[0], 64) == b"\xff" * 64


class Guest:
    """A TD that accepts a page, writes a secret there, and reads it back after something happened."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.hypervisor = Hypervisor(platform.host)
        self.read: int | None = None
        self.attack: Any = lambda hpa: None
        engine = platform.machine.engine
        assert isinstance(engine, ScriptedEngine)
        engine.add_program(self.program)
        page = InitialPage(CODE, b"measured".ljust(PAGE, b"."))
        self.td = Td.build(self.hypervisor, TdConfig(vcpus=1), [page], ram=[(RAM, RAM_END)])
        io = MachineIo(self.td, BoardConfig(apic_ids=(0,)), console_out=lambda _: None)
        self.runner = io.runner(self.hypervisor.processors)

    def program(self, _cpu: Script) -> Any:
        status = (yield Tdcall(rax=ACCEPT, rcx=RAM)).rax >> 32
        if status:  # the hypervisor gave a large page
            status = (yield Tdcall(rax=ACCEPT, rcx=RAM | 1)).rax >> 32
        assert status == 0
        for number in (0, 1):
            yield Write(RAM + 8 * number, u(SECRET, 8 * number, 8))
        self.attack(self.hpa())
        self.read = yield Read(RAM)
        while True:  # power off
            yield Tdcall(rax=0, rcx=0xFC00, r10=0, r11=30, r12=1, r13=1, r14=0x605, r15=0x20)

    def hpa(self) -> int:
        """Where the hypervisor put the guest's page."""
        for level in (0, 1):
            page = self.td.private.tables[level].get(RAM)
            if page is not None:
                return page
        raise AssertionError("the page is not mapped")


def test_a_secret_is_nowhere_in_dram(platform: Platform) -> None:
    found: list[object] = []
    guest = Guest(platform)

    def look(hpa: int) -> None:
        memory = platform.machine.memory
        memory.wbinvd()
        dram = Dram(memory)
        for size in (16, 8):
            found.extend(dram.find(SECRET[:size]))
        for keyid in range(platform.host.shared_keyids + 1):
            found.extend(
                [keyid] if SECRET[:8] in memory.read(memory.addresses.join(hpa, keyid), PAGE) else []
            )
        assert dram.owners(hpa, PAGE) == PAGE // 64

    guest.attack = look
    result = guest.runner.run(60)
    assert (result.reason, found) == (EndReason.POWER_OFF, [])
    assert guest.read == u(SECRET, 0, 8)
    guest.td.teardown()


@pytest.mark.parametrize("bit", [0, 77, 511])
def test_one_flipped_dram_bit_is_a_machine_check_and_a_dead_td(platform: Platform, bit: int) -> None:
    """Never a wrong answer: the guest does not get to see what it reads."""
    guest = Guest(platform)

    def flip(hpa: int) -> None:
        platform.machine.memory.wbinvd()
        Dram(platform.machine.memory).flip(hpa + bit // 8, bit % 8)

    guest.attack = flip
    result = guest.runner.run(60)
    assert result.reason is EndReason.MACHINE_CHECK, result
    assert guest.read is None
    assert len(platform.machine.machine_checks) == 1
    # The TD is dead; its pages and its key come back all the same.
    status, _ = seamcall(platform, MEM_RD, CODE, guest.td.root)
    assert status == TD_FATAL
    guest.td.teardown()
    assert guest.hypervisor.allocator.used == 0

"""A TD's life against the strict fake module: built, run, torn down, and broken off at every call."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator
from typing import Any

import pytest

from swtdx.arch import status as st
from swtdx.arch.td_config import ATTR_DEBUG
from swtdx.vmm.errors import ConfigError, NoHkid, OutOfMemory, SeamcallError, VmmError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.result import EndReason
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig
from tests.vmm.fake_machine import FakeMachine
from tests.vmm.support import POWER_OFF, RAM, SHIM, Setup, call

MIB = 1 << 20
Guest = Generator[tuple[Any, ...], Any, None]


def nothing_left(hypervisor: Hypervisor, machine: FakeMachine) -> None:
    """The module knows no TD, the hypervisor has no page out, and no cache line of a TD is dirty."""
    assert not machine.module.tds
    assert not machine.module.pamt
    assert not machine.module.blocks
    assert hypervisor.allocator.used == 0
    assert not machine.module.dirty
    assert hypervisor.platform.hkids.free == machine.private_keyids - 1


def test_whole_life() -> None:
    def guest() -> Guest:
        assert (yield "accept", 0, 1) == "accepted"
        assert (yield "accept", 2 * MIB + 4096, 0) == "accepted"
        yield "private", 4096
        yield POWER_OFF

    setup = Setup(guest)
    result = setup.runner.run(timeout=10)
    assert result.reason is EndReason.POWER_OFF, result
    assert result.orderly
    assert result.stats.pages["augmented_2m"] == 1
    assert result.stats.pages["augmented_4k"] == 1
    assert result.stats.tdvmcalls == {"Instruction.IO": 1}
    setup.td.teardown()
    nothing_left(setup.hypervisor, setup.machine)
    setup.td.teardown()


def test_kvm_order_and_measurement() -> None:
    machine = FakeMachine(packages=2, per_package=2)
    hypervisor = Hypervisor(machine.host)
    machine.module.log.clear()
    pages = [InitialPage(0xFFFFE000, b"scratch", measured=False), SHIM]
    td = Td.build(hypervisor, TdConfig(vcpus=1), pages, ram=RAM)
    order = [leaf for leaf, _ in machine.module.log if leaf != 36]  # PAMTs are initialised lazily
    assert order == (
        [9, 8, 8] + [1] * 6 + [21, 11, 11]  # CREATE, KEY.CONFIG a package, ADDCX, INIT
        + [10] + [4] * 5 + [22, 43, 43, 43, 43]  # VP.CREATE, ADDCX, INIT, WR
        + [3, 3, 3, 2, 2] + [16] * 16 + [17]  # SEPT.ADD top down, PAGE.ADD, EXTEND, FINALIZE
    )  # fmt: skip
    # MRTD's input by measurement.md, written out here once more.
    expected = hashlib.sha384()
    for gpa in (0xFFFFE000, 0xFFFFF000):
        expected.update(b"MEM.PAGE.ADD\0\0\0\0" + struct.pack("<Q", gpa) + bytes(104))
    data = b"code".ljust(4096, b"\0")
    for at in range(0, 4096, 256):
        expected.update(b"MR.EXTEND\0\0\0\0\0\0\0" + struct.pack("<Q", 0xFFFFF000 + at) + bytes(104))
        expected.update(data[at : at + 256])
    assert machine.module.tds[td.root].mr.digest() == expected.digest()
    td.teardown()
    nothing_left(hypervisor, machine)


def test_breaking_off_at_any_call_leaves_nothing() -> None:
    """Refuse the n-th call of every leaf that building makes: nothing of the TD may remain."""
    trial = FakeMachine(packages=2)
    hypervisor = Hypervisor(trial.host)
    trial.module.log.clear()
    Td.build(hypervisor, TdConfig(vcpus=2), [SHIM], ram=RAM).teardown()
    total: dict[int, int] = {}
    for leaf, _ in trial.module.log:
        total[leaf] = total.get(leaf, 0) + 1
    building = {leaf: count for leaf, count in total.items() if leaf not in (18, 19, 20, 28, 40, 41)}
    tried = 0
    for leaf, count in building.items():
        for nth in {1, 2, count}:
            if nth > count:
                continue
            tried += 1
            machine = FakeMachine(packages=2)
            hypervisor = Hypervisor(machine.host)
            machine.module.fail[leaf, machine.module.seen.get(leaf, 0) + nth] = st.TDX_OPERAND_INVALID | 1
            with pytest.raises(SeamcallError) as caught:
                Td.build(hypervisor, TdConfig(vcpus=2), [SHIM], ram=RAM)
            assert caught.value.leaf == leaf
            assert "OPERAND_INVALID | RCX" in str(caught.value)
            assert not getattr(caught.value, "__notes__", [])
            nothing_left(hypervisor, machine)
    assert tried > 25


def test_out_of_memory_half_way() -> None:
    machine = FakeMachine(usable=[(0x100000, 1 << 30)], cmrs=[(0x100000, 1 << 30)])
    hypervisor = Hypervisor(machine.host)
    hypervisor.platform.initialise_all(hypervisor.allocator)
    hoard: list[int] = []
    with pytest.raises(OutOfMemory, match="give the machine more memory"):
        hoard.extend(iter(lambda: hypervisor.allocator.block("hoard"), None))
    hypervisor.allocator.free(hoard[0])
    used = hypervisor.allocator.used
    with pytest.raises(OutOfMemory):
        Td.build(
            hypervisor,
            TdConfig(),
            [InitialPage(gpa, b"x", False) for gpa in range(0, 4 * MIB, 4096)],
            ram=RAM,
        )
    assert hypervisor.allocator.used == used
    assert not machine.module.tds


def test_keys_run_out_and_come_back() -> None:
    machine = FakeMachine()
    machine.private_keyids = 3
    hypervisor = Hypervisor(machine.host)
    tds = [Td.build(hypervisor, TdConfig(), [SHIM]) for _ in range(2)]
    with pytest.raises(NoHkid, match="tear down a TD first"):
        Td.build(hypervisor, TdConfig(), [SHIM])
    tds[0].teardown()
    again = Td.build(hypervisor, TdConfig(), [SHIM])
    assert again.hkid != tds[1].hkid
    for td in (tds[1], again):
        td.teardown()
    nothing_left(hypervisor, machine)


def test_page_that_the_module_keeps_is_not_used_again() -> None:
    setup = Setup()
    kept = setup.td.vcpus[0].tdvpr
    reclaims = len(setup.td.tdcs) + 1
    setup.module.fail[28, reclaims] = st.TDX_OPERAND_BUSY
    setup.module.fail.update({(28, reclaims + n): st.TDX_PAGE_METADATA_INCORRECT | 1 for n in range(1)})
    with pytest.raises(SeamcallError, match="PAGE_METADATA_INCORRECT"):
        setup.td.teardown()
    assert setup.hypervisor.allocator.owner(kept) == "lost by TD"


def test_two_tds_in_turn_on_one_processor() -> None:
    order: list[str] = []

    def guest(name: str) -> Guest:
        for _ in range(3):
            order.append(name)
            yield "wait", 5_000_000
        yield POWER_OFF

    first = Setup(lambda: guest("first"))
    module = first.module
    module.programs = {0: lambda: guest("second")}
    second_td = Td.build(first.hypervisor, TdConfig(), [SHIM], ram=RAM)
    second = Setup.__new__(Setup)
    from swtdx.devices.board import BoardConfig
    from swtdx.vmm.machine_io import MachineIo

    second.io = MachineIo(second_td, BoardConfig(), console_out=lambda _data: None)
    second.runner = second.io.runner(first.hypervisor.processors)
    runners = {"first": first.runner, "second": second.runner}
    while runners:
        for name, runner in list(runners.items()):
            result = runner.run(timeout=0.001)
            if result.reason is EndReason.POWER_OFF:
                del runners[name]
            else:
                assert result.reason is EndReason.TIMEOUT, result
    assert order.count("first") == order.count("second") == 3
    assert order != ["first"] * 3 + ["second"] * 3
    assert first.td.hkid != second_td.hkid
    first.td.teardown()
    second_td.teardown()
    nothing_left(first.hypervisor, first.machine)


def test_busy_calls_are_repeated_with_the_same_operands() -> None:
    machine = FakeMachine()
    hypervisor = Hypervisor(machine.host)
    machine.module.busy = {2: 3, 3: 20, 22: 1}
    td = Td.build(hypervisor, TdConfig(), [SHIM], ram=RAM)
    assert hypervisor.processors[0].retries == 24
    td.teardown()


def test_a_leaf_that_stays_busy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swtdx.vmm.processor.PAUSE", 0)
    machine = FakeMachine()
    hypervisor = Hypervisor(machine.host)
    machine.module.busy = {21: 1 << 30}
    with pytest.raises(SeamcallError, match=r"TDH\.MNG\.INIT: OPERAND_BUSY"):
        Td.build(hypervisor, TdConfig(), [SHIM])
    nothing_left(hypervisor, machine)


def test_td_params_are_what_the_module_gets() -> None:
    config = TdConfig(
        vcpus=3, attributes=ATTR_DEBUG, mrconfigid=b"c" * 48, mrowner=b"o" * 48, mrownerconfig=b"p" * 48
    )
    setup = Setup(config=config)
    params = setup.module.tds[setup.td.root].params
    attributes, xfam, vcpus, l2, msrs = struct.unpack_from("<QQHBB", params)
    assert attributes == 1 | 1 << 28  # DEBUG, SEPT_VE_DISABLE
    assert xfam == 0x2E7
    assert (vcpus, l2, msrs) == (3, 0, 0)
    eptp, flags, tsc = struct.unpack_from("<QQH", params, 24)
    assert eptp == 6 | 3 << 3  # write-back, four levels
    assert flags == 1 << 2  # NO_RBP_MOD
    assert tsc == 100  # 2.5 GHz in 25 MHz
    assert params[80:128] == b"c" * 48
    assert params[128:176] == b"o" * 48
    assert params[176:224] == b"p" * 48
    eax, ebx, ecx, edx = struct.unpack_from("<4I", params, 256)
    assert eax & 0x0FFF3FFF == eax == 0x806F8
    assert ebx == 3 << 16
    assert ecx == 1 << 24 | 1 << 28 | 1 << 29  # TSC deadline, AVX, F16C
    assert edx & 1 << 28  # HTT: more than one vCPU
    assert not any(params[288:])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TdConfig(attributes=1 << 31), "KL"),
        (TdConfig(xfam=1 << 3 | 3), "0x8"),
        (TdConfig(xfam=2), "0x1"),
        (TdConfig(cpuid={(1, None): (1 << 31, 0, 0, 0)}), r"CPUID\(0x1\).EAX"),
    ],
)
def test_configurations_that_the_platform_refuses(config: TdConfig, message: str) -> None:
    machine = FakeMachine()
    hypervisor = Hypervisor(machine.host)
    with pytest.raises(ConfigError, match=message):
        Td.build(hypervisor, config, [SHIM])
    nothing_left(hypervisor, machine)


@pytest.mark.parametrize(
    "arguments",
    [{"vcpus": 0}, {"vcpus": 65536}, {"gpaw": 47}, {"mrowner": b"short"}, {"tsc_hz": 50e6}, {"tsc_hz": 2e10}],
)
def test_configurations_that_no_td_can_have(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TdConfig(**arguments)


def test_no_module() -> None:
    machine = FakeMachine()
    machine.processors[0].seamcall = lambda: False  # type: ignore[method-assign]
    with pytest.raises(SeamcallError, match="no TDX module is loaded"):
        Hypervisor(machine.host)


def test_a_td_that_is_gone_says_so() -> None:
    setup = Setup()
    setup.td.teardown()
    with pytest.raises(VmmError, match="TD does not exist"):
        _ = setup.td.private


def test_five_levels() -> None:
    def guest() -> Guest:
        assert (yield "accept", 0, 1) == "accepted"
        yield POWER_OFF

    setup = Setup(guest, config=TdConfig(gpaw=52))
    assert setup.runner.run(10).reason is EndReason.POWER_OFF
    setup.td.teardown()
    nothing_left(setup.hypervisor, setup.machine)


def test_vmcall_without_registers() -> None:
    """A TDVMCALL that passes nothing is answered, not crashed on."""

    def guest() -> Guest:
        regs = yield "vmcall", {}
        assert regs[10] == 0x8000000000000003
        regs = yield call(0x7777)
        assert regs[10] == 0x8000000000000003
        regs = yield call(5, r10=1)
        assert regs[10] == (1 << 64) - 1000
        yield POWER_OFF

    result = Setup(guest).runner.run(10)
    assert result.reason is EndReason.POWER_OFF
    assert result.stats.tdvmcalls["unknown"] == 3

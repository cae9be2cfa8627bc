"""VMXON, VMXOFF, SEAMCALL, SEAMRET, SEAMOPS: who may, and what they get who may not."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from swtdx.machine import seamops
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.machine import Machine
from swtdx.machine.processor import LogicalProcessor, Mode
from swtdx.machine.seamops import Leaf, ReportVerifier, Result, SeamOpsError

from .conftest import Make

VMXE = 1 << 13
RAX = 0


def vmx_on(lp: LogicalProcessor) -> None:
    if not lp.rdmsr(0x3A) & 1:
        lp.wrmsr(0x3A, 5)
    lp.write_cr4(VMXE)
    lp.vmxon()


# ---------------------------------------------------------------------- VMXON and CR4.VMXE
def test_vmxon_needs_cr4_vmxe(lp: LogicalProcessor) -> None:
    lp.wrmsr(0x3A, 5)
    with pytest.raises(InvalidOpcode):
        lp.vmxon()


@pytest.mark.parametrize("value", [None, 0, 1, 4])
def test_vmxon_needs_a_locked_feature_control(lp: LogicalProcessor, value: int | None) -> None:
    """Locked, with VMX outside SMX: both bits (SDM volume 3, 24.7)."""
    if value is not None:
        lp.wrmsr(0x3A, value)
    lp.write_cr4(VMXE)
    with pytest.raises(GeneralProtection, match="IA32_FEATURE_CONTROL"):
        lp.vmxon()
    assert lp.mode is Mode.LEGACY


def test_vmxon_and_vmxoff(lp: LogicalProcessor) -> None:
    with pytest.raises(InvalidOpcode):
        lp.vmxoff()
    vmx_on(lp)
    assert lp.mode is Mode.ROOT
    with pytest.raises(GeneralProtection):
        lp.vmxon()
    with pytest.raises(GeneralProtection, match="VMXE cannot be cleared"):
        lp.write_cr4(0)
    lp.write_cr4(VMXE | 1 << 5)
    lp.vmxoff()
    lp.write_cr4(0)
    with pytest.raises(InvalidOpcode):
        lp.vmxoff()


def test_processors_enter_vmx_one_by_one(machine: Machine) -> None:
    vmx_on(machine.processors[1])
    assert [lp.mode for lp in machine.processors] == [Mode.LEGACY, Mode.ROOT, Mode.LEGACY, Mode.LEGACY]


# ---------------------------------------------------------------------- SEAMCALL
def test_seamcall_outside_vmx(enabled: Machine) -> None:
    with pytest.raises(InvalidOpcode):
        enabled.processors[0].seamcall()


def test_seamcall_before_mcheck(lp: LogicalProcessor) -> None:
    vmx_on(lp)
    for leaf in (0, 1 << 63):
        lp.gpr[RAX] = leaf
        with pytest.raises(GeneralProtection, match="valid SEAM range"):
            lp.seamcall()


@pytest.mark.parametrize("leaf", [0, 33, 1 << 63, 1 << 63 | 1])
def test_seamcall_with_nobody_there(enabled: Machine, leaf: int) -> None:
    """VMfailInvalid: CF is set, no register changes, and the processor is where it was."""
    lp = enabled.processors[0]
    vmx_on(lp)
    lp.gpr[:] = [leaf, *range(1, 16)]
    lp.seamcall()
    assert lp.cf
    assert lp.gpr == [leaf, *range(1, 16)]
    assert lp.mode is Mode.ROOT


def admit(machine: Machine, entry: object) -> None:
    machine.seam.install_module(entry, len(machine.processors))  # type: ignore[arg-type]


def test_seamcall_and_back(enabled: Machine) -> None:
    lp = enabled.processors[1]
    modes: list[Mode] = []

    def module(caller: LogicalProcessor) -> None:
        modes.append(caller.mode)
        caller.gpr[RAX] = 7

    admit(enabled, module)
    vmx_on(lp)
    lp.cf = True
    lp.seamcall()
    assert (lp.cf, lp.gpr[RAX], lp.mode, modes) == (False, 7, Mode.ROOT, [Mode.SEAM_ROOT])


def test_seam_root_is_left_even_if_the_module_fails(enabled: Machine) -> None:
    lp = enabled.processors[0]

    def module(_: LogicalProcessor) -> None:
        raise RuntimeError("on purpose")

    admit(enabled, module)
    vmx_on(lp)
    with pytest.raises(RuntimeError):
        lp.seamcall()
    assert lp.mode is Mode.ROOT
    assert enabled.seam.lock.acquire(blocking=False)


def test_seamcall_inside_seam(enabled: Machine) -> None:
    lp = enabled.processors[0]
    seen: list[type[Exception]] = []

    def module(caller: LogicalProcessor) -> None:
        for action in (caller.seamcall, caller.vmxon, caller.vmxoff):
            try:
                action()
            except Exception as fault:
                seen.append(type(fault))

    admit(enabled, module)
    vmx_on(lp)
    lp.seamcall()
    assert seen == [InvalidOpcode, GeneralProtection, InvalidOpcode]


def test_seam_ready_is_the_gate(enabled: Machine) -> None:
    """SEAMEXTEND.SEAM_READY (byte 128) opens and closes it, on every processor."""
    lp = enabled.processors[0]
    admit(enabled, lambda caller: None)
    vmx_on(lp)
    failed: list[bool] = []
    register = bytearray(enabled.seam.extend)
    for ready in (1, 0, 1):
        register[128] = ready
        enabled.seam.write_seamextend(bytes(register))
        lp.seamcall()
        failed.append(lp.cf)
    assert failed == [False, True, False]
    with pytest.raises(GeneralProtection, match="136 bytes"):
        enabled.seam.write_seamextend(bytes(135))


# ---------------------------------------------------------------------- SEAMRET and SEAMOPS
@pytest.mark.parametrize("mode", [Mode.LEGACY, Mode.ROOT, Mode.ACM, Mode.SEAM_NON_ROOT])
def test_seamret_and_seamops_outside_seam(enabled: Machine, mode: Mode) -> None:
    lp = enabled.processors[0]
    lp.mode = mode
    with pytest.raises(InvalidOpcode):
        lp.seamret()
    for leaf in Leaf:
        with pytest.raises(InvalidOpcode):
            lp.seamops(leaf)
    assert lp.mode is mode


def test_seamret(enabled: Machine) -> None:
    lp = enabled.processors[0]
    lp.mode, lp.cf = Mode.SEAM_ROOT, True
    lp.seamret()
    assert (lp.mode, lp.cf) == (Mode.ROOT, False)


@pytest.fixture
def inside(enabled: Machine) -> LogicalProcessor:
    """A processor in SEAM root mode, with a module that SEAMEXTEND describes."""
    register = bytearray(136)
    register[0:8] = (0x1FF).to_bytes(8, "little")
    register[8:24] = bytes((5, 1)) + bytes(14)
    register[24:72] = b"\x11" * 48
    register[130] = 1
    enabled.seam.write_seamextend(bytes(register))
    lp = enabled.processors[0]
    lp.mode = Mode.SEAM_ROOT
    return lp


def test_seamops_capabilities(inside: LogicalProcessor) -> None:
    assert inside.seamops(0) == 0b1111111
    with pytest.raises(GeneralProtection, match="leaf 0x7 does not exist"):
        inside.seamops(7)


DATA, HASH = bytes(range(64)), b"\x22" * 48


def test_seamreport(inside: LogicalProcessor) -> None:
    """REPORTMACSTRUCT and TEE_TCB_INFO at the offsets of structures.md §9."""
    report = inside.seamops(Leaf.SEAMREPORT, 0x81, DATA, HASH)
    assert len(report) == 512
    assert report[0:4] == b"\x81\0\0\0"
    assert report[4:16] == bytes(12)
    assert report[16:32] == inside.model.cpusvn
    assert report[32:80] == hashlib.sha384(report[256:495]).digest()
    assert report[80:128] == HASH
    assert report[128:192] == DATA
    assert report[192:224] == bytes(32)
    key = inside.machine.seam.fuses.report_key
    assert report[224:256] == hmac.new(key, report[:224], hashlib.sha256).digest()
    info = report[256:495]
    assert int.from_bytes(info[0:8], "little") == 0x1FF
    assert info[8:24] == bytes((5, 1, 2)) + bytes(13)
    assert info[24:72] == b"\x11" * 48
    assert not any(info[72:])
    assert not any(report[495:])
    assert inside.seamops(Leaf.SEAMVERIFYREPORT, report[:256]) is Result.SUCCESS


def test_every_flipped_bit_of_a_report_is_noticed(inside: LogicalProcessor) -> None:
    report = inside.seamops(Leaf.SEAMREPORT, 0x81, DATA, HASH)[:256]
    verifier = ReportVerifier(inside.machine.seam)
    assert verifier.verify(report)
    for number in range(8 * 256):
        changed = bytearray(report)
        changed[number // 8] ^= 1 << number % 8
        result = inside.seamops(Leaf.SEAMVERIFYREPORT, bytes(changed))
        # CPUSVN is compared before the MAC (structures.md §9).
        wanted = Result.INVALID_CPUSVN if 16 <= number // 8 < 32 else Result.INVALID_REPORTMACSTRUCT
        assert result is wanted
        assert not verifier.verify(bytes(changed))
    assert not verifier.verify(report[:-1])


def test_seamreport_refuses_operands_of_a_wrong_size(inside: LogicalProcessor) -> None:
    for operands in ((b"\x81", DATA, HASH), (0x81, DATA[:-1], HASH), (0x81, DATA, HASH + b"\0")):
        with pytest.raises(SeamOpsError) as error:
            inside.seamops(Leaf.SEAMREPORT, *operands)
        assert error.value.result is Result.INPUT_ERROR


def test_no_report_without_a_module(enabled: Machine) -> None:
    lp = enabled.processors[0]
    lp.mode = Mode.SEAM_ROOT
    with pytest.raises(SeamOpsError, match="does not describe a module"):
        lp.seamops(Leaf.SEAMREPORT, 0x81, DATA, HASH)


def test_seamdb(inside: LogicalProcessor) -> None:
    """A report about an earlier module names its identity, and the SVN of the one that runs now."""
    seam = inside.machine.seam
    with pytest.raises(SeamOpsError, match="empty"):
        inside.seamops(Leaf.SEAMDB_GETREF)
    inside.seamops(Leaf.SEAMDB_INSERT)
    index, nonce, count = inside.seamops(Leaf.SEAMDB_GETREF)
    assert (index, len(nonce), count) == (0, 32, 1)
    newer = bytearray(seam.extend)
    newer[8:10], newer[24:72] = bytes((6, 2)), b"\x33" * 48
    seam.write_seamextend(bytes(newer))
    inside.seamops(Leaf.SEAMDB_INSERT)
    assert inside.seamops(Leaf.SEAMDB_GETREF)[0] == 1
    report = inside.seamops(Leaf.SEAMDB_REPORT, 0x81, DATA, HASH, index=0, nonce=nonce)
    info = report[256:495]
    assert int.from_bytes(info[0:8], "little") == 0x301FF
    assert (info[8:10], info[24:72], info[128:130]) == (bytes((5, 1)), b"\x11" * 48, bytes((6, 2)))
    for wrong, secret in ((0, bytes(32)), (2, nonce), (1, nonce)):
        with pytest.raises(SeamOpsError) as error:
            inside.seamops(Leaf.SEAMDB_REPORT, 0x81, DATA, HASH, index=wrong, nonce=secret)
        assert error.value.result is Result.DATABASE_ERROR
    inside.seamops(Leaf.SEAMDB_CLEAR)
    assert seam.database.entries == []
    for _ in range(seamops.DATABASE_SIZE):
        inside.seamops(Leaf.SEAMDB_INSERT)
    with pytest.raises(SeamOpsError, match="holds 256 entries"):
        inside.seamops(Leaf.SEAMDB_INSERT)


# ---------------------------------------------------------------------- fuses
def test_same_seed_same_machine(make: Make) -> None:
    def keys(seed: bytes, boot: int = 0) -> tuple[bytes, bytes, bytes]:
        machine = make(seed=seed, boot=boot)
        fuses = machine.seam.fuses
        return fuses.report_key, fuses.database_nonce, machine.random.bytes(32)

    one = keys(b"a" * 16)
    assert keys(b"a" * 16) == one
    other = keys(b"b" * 16)
    assert all(mine != theirs for mine, theirs in zip(one, other, strict=True))
    # A report of an earlier boot does not verify.
    assert keys(b"a" * 16, boot=1)[0] != one[0]


def test_a_report_of_another_machine_or_boot(make: Make) -> None:
    def report(machine: Machine) -> bytes:
        register = bytearray(136)
        register[0] = 1
        machine.seam.write_seamextend(bytes(register))
        return seamops.seamreport(machine.seam, 0x81, DATA, HASH)[:256]

    machine = make(seed=b"a" * 16)
    mine = report(machine)
    for other in (make(seed=b"b" * 16), make(seed=b"a" * 16, boot=1)):
        assert seamops.verify_mac(machine.seam, report(other)) is Result.INVALID_REPORTMACSTRUCT
    assert seamops.verify_mac(make(seed=b"a" * 16).seam, mine) is Result.SUCCESS

"""GETSEC[ENTERACCS]: when the processor faults, and which ACMs it does not run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from swtdx.firmware import mcheck, np_seamldr
from swtdx.firmware.acm import authenticate, build_acm, enter_accs
from swtdx.firmware.errors import AcmError, FirmwareError
from swtdx.firmware.image import SignedImage
from swtdx.firmware.signing import Signer, simulated_signer
from swtdx.machine.faults import GeneralProtection, InvalidOpcode, ProcessorFault
from swtdx.machine.machine import Machine
from swtdx.machine.processor import LogicalProcessor, Mode

from .conftest import Bare
from .support import MIB, boot_standin, put, u

CMRS = [(1 * MIB, 191 * MIB)]
PLACE = 2 * MIB
SMXE = 1 << 14


@pytest.fixture
def ready(bare: Bare, acm: bytes) -> Machine:
    """MCHECK has run, the ACM is in memory, and CR4.SMXE is set on all processors."""
    machine = bare()
    mcheck.run(machine, CMRS)
    machine.memory.write(PLACE, acm)
    for lp in machine.processors:
        lp.write_cr4(SMXE)
    return machine


def enter(lp: LogicalProcessor, acm: bytes, pa: int = PLACE, size: int | None = None) -> object:
    return enter_accs(lp, pa, len(acm) if size is None else size, simulated_signer().key_hash)


def vmx(lp: LogicalProcessor) -> None:
    lp.write_cr4(SMXE | 1 << 13)
    lp.vmxon()


CONDITIONS: list[tuple[str, Callable[[LogicalProcessor], object], type[ProcessorFault]]] = [
    ("smxe-clear", lambda lp: lp.write_cr4(0), InvalidOpcode),
    ("in-vmx", vmx, GeneralProtection),
    ("in-an-acm", lambda lp: setattr(lp, "mode", Mode.ACM), GeneralProtection),
    ("not-the-bsp", lambda lp: lp.msrs.poke(0x1B, lp.rdmsr(0x1B) & ~(1 << 8)), GeneralProtection),
    ("machine-check", lambda lp: lp.wrmsr(0x17A, 4), GeneralProtection),
]


@pytest.mark.parametrize(("change", "fault"), [row[1:] for row in CONDITIONS], ids=[r[0] for r in CONDITIONS])
def test_the_processor_faults(
    ready: Machine, acm: bytes, change: Callable[[LogicalProcessor], object], fault: type[ProcessorFault]
) -> None:
    """Conditions of the SDM, GETSEC[ENTERACCS]."""
    change(ready.processors[0])
    with pytest.raises(fault):
        enter(ready.processors[0], acm)
    assert ready.seam.p_seamldr_entry is None


def test_only_the_bootstrap_processor_enters(ready: Machine, acm: bytes) -> None:
    with pytest.raises(GeneralProtection, match="bootstrap"):
        enter(ready.processors[1], acm)


@pytest.mark.parametrize(
    ("pa", "size"),
    [(PLACE + 64, None), (PLACE, 0), (PLACE, 65), (PLACE, 512 * 1024), ((1 << 32) - 4096, 4096)],
    ids=["unaligned", "empty", "no-multiple-of-64", "larger-than-its-cache", "at-4-GiB"],
)
def test_impossible_places_fault(ready: Machine, acm: bytes, pa: int, size: int | None) -> None:
    with pytest.raises(GeneralProtection):
        enter(ready.processors[0], acm, pa, size)


def test_it_is_in_acm_mode_until_the_loader_ends(ready: Machine, acm: bytes) -> None:
    lp = ready.processors[0]
    accepted = enter_accs(lp, PLACE, len(acm), simulated_signer().key_hash)
    during = lp.mode
    np_seamldr.run(lp, accepted)
    assert (during, lp.mode) == (Mode.ACM, Mode.LEGACY)


# ---------------------------------------------------------------------- the image
def refused(image: bytes, fused: bytes | None = None) -> str:
    with pytest.raises(AcmError) as refusal:
        authenticate(image, fused or simulated_signer().key_hash)
    assert refusal.value.status is None
    return str(refusal.value)


@pytest.mark.parametrize(
    ("offset", "size", "value", "words"),
    [
        (0, 2, 3, "MODULE_TYPE is 0x3"),
        (2, 2, 0, "MODULE_SUBTYPE is 0x0"),
        (4, 4, 161, "HEADER_LENGTH"),
        (8, 4, 0, "HEADER_VERSION"),
        (16, 4, 0x1022, "VENDOR is 0x1022"),
        (24, 4, 1, "says that it has 4 bytes"),
        (52, 4, 0, "ENTRY_POINT"),
        (56, 1, 1, "reserved"),
        (119, 1, 1, "reserved"),
        (120, 4, 64, "KEY_SIZE"),
        (124, 4, 0, "SCRATCH_SIZE"),
        (28, 2, 3, "the module was changed"),  # ACM SVN, signed
        (128, 1, 0xFF, "signer is unknown"),
        (512, 1, 0xFF, "the module was changed"),
    ],
)
def test_a_malformed_header_is_refused_by_field(
    acm: bytes, offset: int, size: int, value: int, words: str
) -> None:
    image = bytearray(acm)
    put(image, offset, size, value)
    assert words in refused(bytes(image))


def test_sizes(acm: bytes) -> None:
    assert "not an ACM" in refused(acm[:1024])
    assert "not an ACM" in refused(acm[:-1])
    assert "not an ACM" in refused(acm + bytes(300 * 1024 - len(acm)))
    assert "says that it has" in refused(acm + bytes(64))


def test_one_flipped_bit_anywhere_is_refused(acm: bytes) -> None:
    """One bit of every third byte of what is signed; the scratch area (896..1727) is not."""
    for offset in [*range(0, 896, 3), *range(1728, len(acm), 3)]:
        image = bytearray(acm)
        image[offset] ^= 1 << offset % 8
        refused(bytes(image))
    scratch = bytearray(acm)
    scratch[1000] ^= 1
    authenticate(bytes(scratch), simulated_signer().key_hash)


def test_another_signer_is_refused(acm: bytes, stranger: Signer, image: SignedImage) -> None:
    theirs = build_acm(stranger)
    assert "not the one in the fuses" in refused(theirs)
    assert "not the one in the fuses" in refused(acm, stranger.key_hash)
    # A machine with his key in its fuses runs his ACM, and modules of those whom it trusts.
    with boot_standin(image, theirs, acm_key_hash=stranger.key_hash) as platform:
        assert platform.loader.trusted == {simulated_signer().key_hash}
    with pytest.raises(AcmError, match="not the one in the fuses"):
        boot_standin(image, theirs)


def test_openssl_verifies_the_signature(acm: bytes) -> None:
    """The signed part: the header up to the key, and all behind the scratch area."""
    key = rsa.RSAPublicNumbers(65537, int.from_bytes(acm[128:512], "little")).public_key()
    signature = acm[512:896][::-1]
    covered = acm[:128] + acm[1728:]
    key.verify(signature, covered, padding.PKCS1v15(), hashes.SHA384())
    with pytest.raises(InvalidSignature):
        key.verify(signature, covered[:-1] + b"x", padding.PKCS1v15(), hashes.SHA384())
    assert u(acm, 24, 4) * 4 == len(acm)
    assert hashlib.sha384(acm[128:512]).digest() == simulated_signer().key_hash


def test_the_measurement_follows_the_contents(acm: bytes, stranger: Signer) -> None:
    fused = simulated_signer().key_hash
    mine = authenticate(acm, fused)
    again = authenticate(build_acm(), fused)
    other = authenticate(build_acm(module_signers=(stranger.key_hash,)), fused)
    assert mine.measurement == again.measurement != other.measurement
    assert mine.measurement == hashlib.sha384(acm[:128] + acm[1728:] + acm[128:512]).digest()


def test_a_loader_whose_files_changed_is_refused(acm: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ACM stands for the files of swtdx.firmware: one of them is not what was signed any more."""
    from swtdx.firmware import manifest

    real = manifest.find_sources

    def find(package: str) -> dict[str, object]:
        found = dict(real(package))
        found["swtdx.firmware/bios.py"] = found["swtdx.firmware/acm.py"]
        return found  # type: ignore[return-value]

    monkeypatch.setattr(manifest, "find_sources", find)
    with pytest.raises(FirmwareError, match="loader on this disk is not the one that was signed"):
        boot_standin(SignedImage(b"", b""), acm)

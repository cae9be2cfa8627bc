"""Authenticated code modules, and GETSEC[ENTERACCS], the only way to start one.

The header is that of version 3.0 ACMs with RSA-3072 (Intel TXT Software Development Guide, appendix A;
``Header.h`` of intel/seam-loader); the signature covers the header before the key and what follows the
scratch area.  The processor compares the hash of the key with one in its fuses, verifies the signature,
measures the module (SHA-384), and only then runs it.  An ACM of swtdx carries a manifest of Python files
(:mod:`swtdx.firmware.manifest`) where Intel's carries machine code.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from swtdx.arch.layout import Blob, Field, Struct
from swtdx.arch.msrs import IA32_APIC_BASE, IA32_MCG_STATUS
from swtdx.arch.units import PAGE
from swtdx.arch.x86 import CR4_SMXE
from swtdx.firmware.errors import AcmError, ImageError
from swtdx.firmware.manifest import Manifest, check_sources, measure
from swtdx.firmware.signing import EXPONENT, KEY_BYTES, Signer, simulated_signer, verify
from swtdx.machine.faults import GeneralProtection, InvalidOpcode
from swtdx.machine.processor import Mode

if TYPE_CHECKING:
    from swtdx.machine.processor import LogicalProcessor


class ACM_HEADER(Struct, size=1728, source="Intel TXT Software Development Guide, appendix A; Header.h"):
    """Header of a version 3.0 ACM, with its scratch area."""

    module_type = Field(0, 2, "2: chipset ACM")
    module_subtype = Field(2, 2, "1: server; 3: other code, as the SEAM loader")
    header_length = Field(4, 4, "224 dwords, without the scratch area")
    header_version = Field(8, 4, "0x30000")
    chipset_id = Field(12, 2)
    flags = Field(14, 2, "bit 15: signed for debugging")
    vendor = Field(16, 4, "0x8086")
    date = Field(20, 4, "BCD yyyymmdd")
    size_ = Field(24, 4, "of the whole module, in dwords")
    acm_svn = Field(28, 2)
    se_svn = Field(30, 2)
    code_control = Field(32, 4)
    error_entry_point = Field(36, 4)
    gdt_limit = Field(40, 4)
    gdt_base = Field(44, 4)
    segment_selector = Field(48, 4)
    entry_point = Field(52, 4, "offset in the module")
    reserved = Blob(56, 64, reserved=True)
    key_size = Field(120, 4, "96 dwords")
    scratch_size = Field(124, 4, "208 dwords")
    modulus = Blob(128, 384, "little-endian; the exponent is 65537")
    signature = Blob(512, 384, "little-endian")
    scratch = Blob(896, 832, "the processor's, not signed")


_CONSTANTS: Final = (
    ("module_type", 2), ("module_subtype", 3), ("header_length", 224), ("header_version", 0x30000),
    ("vendor", 0x8086), ("key_size", 96), ("scratch_size", 208), ("entry_point", ACM_HEADER.size),
)  # fmt: skip
_DEBUG: Final = 1 << 15
#: The processor runs ACMs out of a cache of this size.
MAX_ACM: Final = 256 << 10
#: IA32_MCG_STATUS: a machine check is in progress.
_MCIP: Final = 1 << 2
#: ENTERACCS takes a base and a size of 32 bits each.
_HIGHEST: Final = (1 << 32) - 1
#: Lengths in the body: P_SEAMLDR_CONSTS, then the manifest's length (u32).


class P_SEAMLDR_CONSTS(Struct, size=48, source="Header.h"):
    """What the NP-SEAMLDR needs to know to lay out the P-SEAMLDR (bytes)."""

    data_stack_size = Field(0, 8)
    code_region_size = Field(8, 8)
    data_region_size = Field(16, 8)
    keyhole_region_size = Field(24, 8)
    keyhole_edit_region_size = Field(32, 8)
    entry_point_offset = Field(40, 8)


_BODY: Final = ACM_HEADER.size

#: What the loaders consist of.
LOADER_PACKAGES: Final = ("swtdx.firmware",)
LOADER_ENTRY: Final = "swtdx.firmware.np_seamldr:run"
LOADER_VERSION: Final = "1.5.0"
#: Manifest constant: SHA-384 (hex) of the keys whose modules the P-SEAMLDR loads, by commas.
SIGNERS: Final = "module-signers"


@dataclass(frozen=True, slots=True)
class Acm:
    """An ACM that the processor has accepted."""

    measurement: bytes
    manifest: Manifest
    constants: bytes
    debug: bool


def build_acm(signer: Signer | None = None, module_signers: tuple[bytes, ...] | None = None) -> bytes:
    """The NP-SEAMLDR ACM of this installation.

    ``signer`` signs it (default: the simulated key, which the default fuses know); ``module_signers``
    are the SHA-384 hashes of the keys whose modules its P-SEAMLDR will load (default: the simulated
    key's).
    """
    signer = signer or simulated_signer()
    trusted = module_signers or (simulated_signer().key_hash,)
    manifest = Manifest(
        "swtdx SEAM loader",
        LOADER_VERSION,
        LOADER_ENTRY,
        LOADER_PACKAGES,
        measure(LOADER_PACKAGES),
        ((SIGNERS, ",".join(key.hex() for key in trusted)),),
    ).encode()
    constants = P_SEAMLDR_CONSTS.new()
    P_SEAMLDR_CONSTS.data_stack_size.set(constants, 16 * PAGE)
    P_SEAMLDR_CONSTS.code_region_size.set(constants, 64 * PAGE)
    P_SEAMLDR_CONSTS.data_region_size.set(constants, 8 * PAGE)
    P_SEAMLDR_CONSTS.keyhole_region_size.set(constants, 128 * PAGE)
    P_SEAMLDR_CONSTS.keyhole_edit_region_size.set(constants, PAGE)
    body = bytes(constants) + len(manifest).to_bytes(4, "little") + manifest
    size = -(-(_BODY + len(body)) // 64) * 64
    if size > MAX_ACM:
        raise ImageError(f"an ACM has at most {MAX_ACM} bytes, and this needs {size}")
    image = bytearray(size)
    for name, value in (
        *_CONSTANTS,
        ("size_", size // 4),
        ("acm_svn", 2),
        ("se_svn", 2),
        ("date", 0x20240101),
    ):
        ACM_HEADER.integer(name).set(image, value)
    ACM_HEADER.modulus.set(image, signer.modulus)
    image[_BODY : _BODY + len(body)] = body
    ACM_HEADER.signature.set(image, signer.sign(_signed(image)))
    return bytes(image)


def _signed(image: bytes | bytearray) -> bytes:
    return bytes(image[: ACM_HEADER.modulus.offset]) + bytes(image[_BODY:])


def authenticate(image: bytes, fused_key_hash: bytes) -> Acm:
    """What the processor does before it runs an ACM.

    Raises:
        AcmError: malformed, signed by a key that is not the fused one, or changed; on hardware the
            platform is reset (TXT shutdown).
    """
    layout = ACM_HEADER
    if len(image) < layout.size or len(image) > MAX_ACM or len(image) % 64:
        raise AcmError(f"{len(image)} bytes are not an ACM (at most {MAX_ACM}, a multiple of 64)")
    for name, expected in _CONSTANTS:
        field = layout.integer(name)
        if field.get(image) != expected:
            raise AcmError(f"the ACM's {name.upper()} is {field.get(image):#x}, not {expected:#x}")
    if layout.size_.get(image) * 4 != len(image):
        raise AcmError(f"the ACM says that it has {layout.size_.get(image) * 4} bytes, not {len(image)}")
    if any(layout.reserved.get(image)):
        raise AcmError("the ACM's header has reserved bytes set")
    modulus = layout.modulus.get(image)
    if hashlib.sha384(modulus).digest() != fused_key_hash:
        raise AcmError("the ACM's signer is unknown: the hash of its key is not the one in the fuses")
    if not verify(modulus, EXPONENT, layout.signature.get(image), _signed(image)):
        raise AcmError("the ACM's signature does not verify: the module was changed")
    start = _BODY + P_SEAMLDR_CONSTS.size + 4
    length = int.from_bytes(image[start - 4 : start], "little")
    manifest = Manifest.decode(image[start : start + length])
    constants = image[_BODY : _BODY + P_SEAMLDR_CONSTS.size]
    measurement = hashlib.sha384(_signed(image) + modulus).digest()
    return Acm(measurement, manifest, constants, bool(layout.flags.get(image) & _DEBUG))


def enter_accs(lp: LogicalProcessor, pa: int, size: int, fused_key_hash: bytes) -> Acm:
    """GETSEC[ENTERACCS] up to the ACM's first instruction; the processor is then in ACM mode.

    ``pa`` and ``size`` (bytes) say where the ACM lies in memory (EBX and ECX of the instruction).
    Conditions: Intel SDM volume 2, GETSEC[ENTERACCS].

    Raises:
        InvalidOpcode: CR4.SMXE is clear.
        GeneralProtection: the processor is in VMX operation or in an ACM, is not the bootstrap processor,
            or has a machine check in progress; or the ACM's place or size cannot be one.
        AcmError: authentication failed, or the files that the ACM stands for were changed.
    """
    if not lp.cr4 & CR4_SMXE:
        raise InvalidOpcode("GETSEC[ENTERACCS] with CR4.SMXE clear")
    if lp.mode is not Mode.LEGACY:
        raise GeneralProtection(f"GETSEC[ENTERACCS] on a processor that is in {lp.mode.value}")
    if not lp.rdmsr(IA32_APIC_BASE) & 1 << 8:
        raise GeneralProtection("GETSEC[ENTERACCS]: only the bootstrap processor may enter an ACM")
    if lp.rdmsr(IA32_MCG_STATUS) & _MCIP:
        raise GeneralProtection("GETSEC[ENTERACCS] while a machine check is in progress")
    if pa % PAGE or size % 64 or not 0 < size <= MAX_ACM:
        raise GeneralProtection(f"GETSEC[ENTERACCS]: {size} bytes at {pa:#x} cannot be an ACM")
    if pa + size > _HIGHEST:
        raise GeneralProtection(f"GETSEC[ENTERACCS]: an ACM lies below 4 GiB, not at {pa:#x}")
    image = lp.machine.memory.read(pa, size)
    acm = authenticate(image, fused_key_hash)
    try:
        check_sources(acm.manifest)
    except ImageError as error:
        raise AcmError(f"the loader on this disk is not the one that was signed: {error}") from None
    lp.mode = Mode.ACM
    return acm


assert ACM_HEADER.modulus.size == KEY_BYTES

"""The P-SEAMLDR's checks of SEAM_SIGSTRUCT, from the raw bytes.

Order and status codes: ``verify_manifest`` and ``check_seam_sigstruct`` of intel/seam-loader 1.0
(``seamldr_install.c``).  Signature scheme: structures.md §12, RSASSA-PKCS1-v1_5 with SHA-384 (the
source agrees: EMSA-PKCS1-v1_5 with the DER of SHA-384's DigestInfo; it is not PSS).  The handoff fields
are those of the 1.5 loader, whose source is not public; the 1.0 loader has them reserved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from swtdx.arch import status as st
from swtdx.arch.seam_structs import MODULE_TYPE_DEBUG, SEAM_SIGSTRUCT, SIGSTRUCT_CONSTANTS
from swtdx.arch.x86 import CPUID_1_EAX_STEPPING
from swtdx.firmware.signing import MAX_CPUID_TABLE, signed_part, verify

#: CPUID entries are compared without the stepping.
_FAMILY_MODEL: Final = ~CPUID_1_EAX_STEPPING & 0xFFFFFFFF


class Refusal(Exception):
    """The loader refuses: ``status`` goes to RAX, the message to people."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the platform asks of a module.

    ``trusted`` are the SHA-384 hashes of acceptable moduli, ``cpuids`` CPUID(1).EAX of every socket,
    ``current_svn`` the SEAMSVN of the module to be updated, None at a first load.
    """

    trusted: Collection[bytes]
    cpuids: Sequence[int]
    debug_unlocked: bool = False
    current_svn: int | None = None


def signer_hash(modulus: bytes) -> bytes:
    """By what a signer is known: SHA-384 of its modulus (384 bytes, little-endian)."""
    return hashlib.sha384(modulus).digest()


def check_form(sigstruct: bytes) -> None:
    """The structure's constants and reserved bytes.

    Raises:
        Refusal: EBADSIG, with the field that is wrong.
    """
    layout = SEAM_SIGSTRUCT
    if len(sigstruct) != layout.size:
        raise Refusal(st.PSEAMLDR_EBADSIG, f"SIGSTRUCT has {layout.size} bytes, not {len(sigstruct)}")
    if not layout.reserved_is_zero(sigstruct):
        raise Refusal(st.PSEAMLDR_EBADSIG, "SIGSTRUCT has reserved bytes set")
    for name, expected in SIGSTRUCT_CONSTANTS:
        field = layout.integer(name)
        value = field.get(sigstruct)
        if value != expected:
            raise Refusal(
                st.PSEAMLDR_EBADSIG, f"SIGSTRUCT.{name.rstrip('_').upper()} is {value:#x}, not {expected:#x}"
            )
    if layout.module_type.get(sigstruct) & ~MODULE_TYPE_DEBUG:
        raise Refusal(st.PSEAMLDR_EBADSIG, "SIGSTRUCT.MODULE_TYPE has reserved bits set")
    if layout.attributes.get(sigstruct):
        raise Refusal(st.PSEAMLDR_EBADSIG, "SIGSTRUCT.ATTRIBUTES is not 0")
    size = layout.cpuid_table_size.get(sigstruct)
    if size > MAX_CPUID_TABLE:
        raise Refusal(st.PSEAMLDR_EBADSIG, f"SIGSTRUCT.CPUID_TABLE_SIZE is {size}, above {MAX_CPUID_TABLE}")


def check(sigstruct: bytes, expected: Expectations) -> None:
    """Everything that can be said without the module's pages.

    Raises:
        Refusal: EBADSIG (form, signer, debug module, older SVN, signature) or EUNSUPCPU.
    """
    check_form(sigstruct)
    layout = SEAM_SIGSTRUCT
    modulus = layout.modulus.get(sigstruct)
    signer = signer_hash(modulus)
    if signer not in expected.trusted:
        raise Refusal(
            st.PSEAMLDR_EBADSIG, f"unknown signer: SHA-384 of the key is {signer.hex()[:16]}..., not trusted"
        )
    if layout.module_type.get(sigstruct) & MODULE_TYPE_DEBUG and not expected.debug_unlocked:
        raise Refusal(st.PSEAMLDR_EBADSIG, "a debug-signed module on a platform that is not debug-unlocked")
    svn = layout.seamsvn.get(sigstruct)
    if expected.current_svn is not None and svn < expected.current_svn:
        raise Refusal(
            st.PSEAMLDR_EBADSIG,
            f"SEAMSVN {svn:#x} is older than the loaded module's {expected.current_svn:#x}",
        )
    _check_processors(sigstruct, expected.cpuids)
    signature = layout.signature.get(sigstruct)
    exponent = layout.exponent.get(sigstruct)
    if not verify(modulus, exponent, signature, signed_part(sigstruct)):
        raise Refusal(st.PSEAMLDR_EBADSIG, "the signature of SIGSTRUCT does not verify")


def _check_processors(sigstruct: bytes, cpuids: Sequence[int]) -> None:
    layout = SEAM_SIGSTRUCT
    count = layout.cpuid_table_size.get(sigstruct)
    table = {layout.cpuid_table.get(sigstruct, index) & _FAMILY_MODEL for index in range(count)}
    for socket, cpuid in enumerate(cpuids):
        if table and cpuid & _FAMILY_MODEL not in table:
            raise Refusal(
                st.PSEAMLDR_EUNSUPCPU, f"socket {socket} has CPUID {cpuid:#x}, which the module does not list"
            )


def check_pages(sigstruct: bytes, pages: bytes) -> None:
    """SEAMHASH over the module's pages.

    Raises:
        Refusal: EBADHASH.
    """
    measured = hashlib.sha384(pages).digest()
    if measured != SEAM_SIGSTRUCT.seamhash.get(sigstruct):
        raise Refusal(
            st.PSEAMLDR_EBADHASH,
            f"the module's pages have SHA-384 {measured.hex()[:16]}..., which is not what was signed",
        )

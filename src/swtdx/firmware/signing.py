"""Signing module images and ACMs: RSA-3072, PKCS#1 v1.5, SHA-384, as structures.md §12 says.

The signing itself is OpenSSL's (through ``cryptography``); :func:`verify` is what the loader's code does
with the raw bytes and shares nothing with it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from swtdx.arch.seam_structs import SEAM_SIGSTRUCT, SIGSTRUCT_CONSTANTS, SIGSTRUCT_SIGNED
from swtdx.firmware.errors import ImageError
from swtdx.firmware.image import SignedImage
from swtdx.firmware.simulated_key import SIMULATED_SIGNER_PEM

KEY_BYTES: Final = 384
EXPONENT: Final = 0x10001
#: DER of "DigestInfo for SHA-384", without the digest (RFC 8017, section 9.2, note 1).
_DIGEST_INFO: Final = bytes.fromhex("3041300d060960864801650304020205000430")
MAX_CPUID_TABLE: Final = 255


class Signer:
    """An RSA-3072 key pair that signs for SEAM."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        numbers = key.public_key().public_numbers()
        if key.key_size != 8 * KEY_BYTES or numbers.e != EXPONENT:
            raise ImageError(
                f"a SEAM signing key is RSA-3072 with exponent 65537, not RSA-{key.key_size} with "
                f"{numbers.e}; make one with: openssl genrsa 3072"
            )
        self._key = key
        #: The modulus, 384 bytes, little-endian.
        self.modulus = numbers.n.to_bytes(KEY_BYTES, "little")

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> Self:
        """The key in a PEM file's contents.

        Raises:
            ImageError: it is not an RSA-3072 private key, or the password is wrong.
        """
        try:
            key = serialization.load_pem_private_key(pem, password)
        except (ValueError, TypeError) as error:
            raise ImageError(f"this is not a private key that can sign for SEAM: {error}") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise ImageError("a SEAM signing key is an RSA key; make one with: openssl genrsa 3072")
        return cls(key)

    @property
    def key_hash(self) -> bytes:
        """SHA-384 of the modulus as it stands in the signature structure: what a loader trusts."""
        return hashlib.sha384(self.modulus).digest()

    def sign(self, data: bytes) -> bytes:
        """The signature of ``data``, 384 bytes, little-endian."""
        return self._key.sign(data, padding.PKCS1v15(), hashes.SHA384())[::-1]


@lru_cache(maxsize=1)
def simulated_signer() -> Signer:
    """The key that plays Intel's part.  Simulated, public: see :mod:`.simulated_key`."""
    # Checking the shipped key's primes would take a tenth of a second at every start.
    key = serialization.load_pem_private_key(SIMULATED_SIGNER_PEM, None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return Signer(key)


def verify(modulus: bytes, exponent: int, signature: bytes, data: bytes) -> bool:
    """RSASSA-PKCS1-v1_5 verification of ``data`` with SHA-384 (RFC 8017, section 8.2.2).

    ``modulus`` and ``signature`` are 384 bytes, little-endian.
    """
    n = int.from_bytes(modulus, "little")
    s = int.from_bytes(signature, "little")
    if n <= 1 or s >= n:
        return False
    message = pow(s, exponent, n).to_bytes(KEY_BYTES, "big")
    digest = _DIGEST_INFO + hashlib.sha384(data).digest()
    expected = b"\0\1" + b"\xff" * (KEY_BYTES - 3 - len(digest)) + b"\0" + digest
    return hmac.compare_digest(message, expected)


@dataclass(frozen=True, slots=True)
class ModuleProperties:
    """What a SEAM_SIGSTRUCT says about a module beside its hash.  Sizes are in pages, less one where
    the field's name in the structure has it so (``num_*_pages``).

    ``svn`` is SEAMSVN: low byte the module's ISVSVN, high byte its major version.  ``cpuids`` lists
    CPUID(1).EAX of the processors that it may run on (steppings do not matter); none: all.
    """

    svn: int = 0x0105
    date: int = 0x20240101
    rip_offset: int = 0
    num_stack_pages: int = 1
    num_tls_pages: int = 1
    num_keyhole_pages: int = 127
    num_global_data_pages: int = 511
    max_tdmrs: int = 64
    max_rsvd_per_tdmr: int = 16
    pamt_entry_size_4k: int = 16
    pamt_entry_size_2m: int = 16
    pamt_entry_size_1g: int = 16
    module_hv: int = 0
    min_update_hv: int = 0
    no_downgrade: int = 0
    num_handoff_pages: int = 15
    debug: bool = False
    cpuids: Sequence[int] = (0x806F0, 0xC06F0, 0xA06F0)


DEFAULT_PROPERTIES: Final = ModuleProperties()
_COPIED: Final = (
    "date", "rip_offset", "num_stack_pages", "num_tls_pages", "num_keyhole_pages", "num_global_data_pages",
    "max_tdmrs", "max_rsvd_per_tdmr", "pamt_entry_size_4k", "pamt_entry_size_2m", "pamt_entry_size_1g",
    "module_hv", "min_update_hv", "no_downgrade", "num_handoff_pages",
)  # fmt: skip


def signed_part(sigstruct: bytes | bytearray) -> bytes:
    """The bytes of a SEAM_SIGSTRUCT that its signature covers: 0..127 and 900..2047."""
    return b"".join(bytes(sigstruct[start:end]) for start, end in SIGSTRUCT_SIGNED)


def sign_module(
    pages: bytes, signer: Signer | None = None, properties: ModuleProperties = DEFAULT_PROPERTIES
) -> SignedImage:
    """Sign the pages of a module image; without ``signer`` with the simulated key.

    Raises:
        ImageError: more processors are listed than the structure holds.
    """
    signer = signer or simulated_signer()
    if len(properties.cpuids) > MAX_CPUID_TABLE:
        raise ImageError(f"a SEAM_SIGSTRUCT lists at most {MAX_CPUID_TABLE} processors")
    layout = SEAM_SIGSTRUCT
    structure = layout.new()
    for name, value in SIGSTRUCT_CONSTANTS:
        layout.integer(name).set(structure, value)
    layout.module_type.set(structure, 1 << 31 if properties.debug else 0)
    layout.modulus.set(structure, signer.modulus)
    layout.seamhash.set(structure, hashlib.sha384(pages).digest())
    layout.seamsvn.set(structure, properties.svn)
    for name in _COPIED:
        layout.integer(name).set(structure, getattr(properties, name))
    layout.cpuid_table_size.set(structure, len(properties.cpuids))
    for number, cpuid in enumerate(properties.cpuids):
        layout.cpuid_table.set(structure, number, cpuid)
    layout.signature.set(structure, signer.sign(signed_part(structure)))
    return SignedImage(pages, bytes(structure))

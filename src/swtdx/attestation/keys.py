"""Every key of the simulated maker, derived from one seed.

The seed stands for what Intel and the fuses of a processor would hold.  From it come, by HKDF-SHA256
(RFC 5869) with a label for each purpose, the private scalars of all P-256 keys and all other secrets,
so that the same seed gives byte-identical certificates, and signatures too: ECDSA is deterministic
(RFC 6979).
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import AttestationError, MissingDependency

#: The seed of a machine that was given none (``machine.MachineConfig``).  It is public: it protects
#: nothing.
DEFAULT_SEED: Final = b"swtdx"

_SALT: Final = b"swtdx attestation keys, version 1"
# Order of the P-256 group (FIPS 186-5 / SP 800-186 section 3.2.1.3).
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def check_seed(seed: bytes) -> bytes:
    """``seed`` itself.

    Raises:
        AttestationError: it is empty.
    """
    if not seed:
        raise AttestationError("a machine seed has at least one byte; this one is empty")
    return bytes(seed)


def derive(seed: bytes, label: str, length: int) -> bytes:
    """``length`` secret bytes for the purpose ``label``."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=length, salt=_SALT, info=label.encode())
    return kdf.derive(check_seed(seed))


class SigningKey:
    """A P-256 private key whose signatures (ECDSA with SHA-256) are deterministic."""

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        self.private = private

    @classmethod
    def derived(cls, seed: bytes, label: str) -> SigningKey:
        """The key for the purpose ``label``.

        The scalar is 384 derived bits reduced modulo the group order minus one, plus one, as in
        FIPS 186-5 appendix A.2.1: the 128 extra bits make the bias negligible.
        """
        scalar = int.from_bytes(derive(seed, f"P-256 key: {label}", 48), "big") % (P256_ORDER - 1) + 1
        return cls(ec.derive_private_key(scalar, ec.SECP256R1()))

    @cached_property
    def public(self) -> ec.EllipticCurvePublicKey:
        """The public half."""
        return self.private.public_key()

    @cached_property
    def public_raw(self) -> bytes:
        """The public point as 64 bytes x ‖ y, big-endian: the form quotes carry."""
        numbers = self.public.public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data`` as 64 bytes r ‖ s, big-endian: the form quotes and PCS use.

        Raises:
            MissingDependency: the installed OpenSSL cannot sign deterministically.
        """
        try:
            der = self.private.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        except UnsupportedAlgorithm as error:
            raise MissingDependency(
                "deterministic ECDSA needs OpenSSL 3.2 or newer under the cryptography package; "
                "its wheels bring one: pip install --only-binary cryptography --upgrade cryptography"
            ) from error
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

"""The names in the simulated certificates.

Verifiers look at common names: go-tdx-guest (``verify/verify.go``) wants them to be exactly Intel's,
and dcap-qvl looks for "Platform" or "Processor" in the issuer (``src/x509.rs``).  So the common names
are the ones that those programs ask for, and the organisation of *every* certificate says what it
really is.  No verifier above looks at the organisation, and no Intel certificate has this one.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

#: The organisation (O) in the subject and the issuer of every certificate that swtdx makes.
MARKER: Final = "swtdx simulated, not Intel"

ROOT_CA: Final = "Intel SGX Root CA"
PLATFORM_CA: Final = "Intel SGX PCK Platform CA"
PROCESSOR_CA: Final = "Intel SGX PCK Processor CA"
PCK: Final = "Intel SGX PCK Certificate"
TCB_SIGNING: Final = "Intel SGX TCB Signing"


def distinguished_name(common_name: str) -> x509.Name:
    """``common_name`` with the organisation that says that this is a simulation."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, MARKER),
        ]
    )


def is_simulated(certificate: x509.Certificate) -> bool:
    """Whether the certificate's subject or issuer says that swtdx made it."""
    return any(
        attribute.value == MARKER
        for name in (certificate.subject, certificate.issuer)
        for attribute in name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    )

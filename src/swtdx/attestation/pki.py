"""The certificates and revocation lists of the simulated maker.

The tree is Intel's: a root CA, under it the PCK Platform CA, the PCK Processor CA and the TCB signing
certificate, and under a PCK CA one PCK certificate for each platform and TCB.  Profile: attestation.md
section 5 (from go-tdx-guest ``pcs/pcs.go``, dcap-qvl ``src/utils.rs``), key
usages and path lengths as in Intel's published root certificate.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ObjectIdentifier

from . import names
from .keys import DEFAULT_SEED, SigningKey, check_seed, derive
from .sgx_platform import SGX_EXTENSION, PckCa, PlatformIdentity, PlatformTcb

#: First second of validity of every certificate, unless another epoch is asked for.  It is fixed so
#: that a seed gives the same certificates on every day.
EPOCH: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)

#: Where ``swtdx pcs serve`` listens by default, hence where the certificates say the CRLs are.  Nothing
#: in a simulated certificate points to a host of Intel's.
PCS_URL: Final = "http://localhost:8081"

#: Path of the root CA's CRL at the service; the file name that Intel's own host uses.
ROOT_CRL_PATH: Final = "/IntelSGXRootCA.der"

_ROOT_YEARS: Final = 30
_CA_YEARS: Final = 25
_LEAF_YEARS: Final = 20


def _years(start: dt.datetime, years: int) -> dt.datetime:
    # The last second before the anniversary: with the default epoch the root ends in 2049, the last
    # year that X.509's UTCTime can say.
    return start.replace(year=start.year + years) - dt.timedelta(seconds=1)


@dataclass(frozen=True)
class Issued:
    """A certificate and the private key behind it."""

    certificate: x509.Certificate
    key: SigningKey

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        """The certificate in PEM, ending in a newline."""
        return self.certificate.public_bytes(Encoding.PEM).decode()


def pem_chain(*issued: Issued) -> str:
    """The certificates in PEM, one after the other, in the order given (leaf first by custom)."""
    return "".join(each.pem for each in issued)


class Pki:
    """All certificates under one seed.

    Args:
        seed: the machine's seed, at least one byte.
        epoch: notBefore of every certificate; timezone-aware, whole seconds.
        pcs_url: base URL written into the CRL distribution points.
        label: keeps the keys of a second tree under the same seed apart (an impostor's, in scenarios).
    """

    def __init__(
        self,
        seed: bytes = DEFAULT_SEED,
        *,
        epoch: dt.datetime = EPOCH,
        pcs_url: str = PCS_URL,
        label: str = "",
    ) -> None:
        self.seed = check_seed(seed)
        self.epoch = epoch
        self.pcs_url = pcs_url.rstrip("/")
        self.label = label

    def _key(self, purpose: str) -> SigningKey:
        return SigningKey.derived(self.seed, f"{self.label}{purpose}")

    def _serial(self, purpose: str) -> int:
        # 159 bits: positive and at most 20 bytes in DER (RFC 5280 section 4.1.2.2).  The top bit is
        # set so that all serial numbers are equally long, as Intel's nearly are.
        number = int.from_bytes(derive(self.seed, f"{self.label}serial number: {purpose}", 20), "big")
        return number & ((1 << 159) - 1) | 1 << 158

    def _builder(
        self, subject: str, issuer: str, key: SigningKey, purpose: str, years: int
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(names.distinguished_name(subject))
            .issuer_name(names.distinguished_name(issuer))
            .public_key(key.public)
            .serial_number(self._serial(purpose))
            .not_valid_before(self.epoch)
            .not_valid_after(_years(self.epoch, years))
        )

    def _extended(
        self,
        builder: x509.CertificateBuilder,
        *,
        subject_key: SigningKey,
        issuer_key: SigningKey,
        crl: str,
        path_length: int | None,
    ) -> x509.CertificateBuilder:
        """Add the five extensions that all certificates of the tree have, in Intel's order."""
        authority = path_length is not None
        return (
            builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public), critical=False
            )
            .add_extension(
                x509.CRLDistributionPoints(
                    [
                        x509.DistributionPoint(
                            full_name=[x509.UniformResourceIdentifier(self.pcs_url + crl)],
                            relative_name=None,
                            reasons=None,
                            crl_issuer=None,
                        )
                    ]
                ),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject_key.public), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not authority,
                    content_commitment=not authority,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(x509.BasicConstraints(ca=authority, path_length=path_length), critical=True)
        )

    def _sign(self, builder: x509.CertificateBuilder, key: SigningKey) -> x509.Certificate:
        return builder.sign(key.private, hashes.SHA256(), ecdsa_deterministic=True)

    @cached_property
    def root(self) -> Issued:
        """The self-signed root CA."""
        key = self._key("root CA")
        builder = self._builder(names.ROOT_CA, names.ROOT_CA, key, "root CA", _ROOT_YEARS)
        builder = self._extended(builder, subject_key=key, issuer_key=key, crl=ROOT_CRL_PATH, path_length=1)
        return Issued(self._sign(builder, key), key)

    def _under_root(self, subject: str, purpose: str, years: int, path_length: int | None) -> Issued:
        key = self._key(purpose)
        builder = self._builder(subject, names.ROOT_CA, key, purpose, years)
        builder = self._extended(
            builder,
            subject_key=key,
            issuer_key=self.root.key,
            crl=ROOT_CRL_PATH,
            path_length=path_length,
        )
        return Issued(self._sign(builder, self.root.key), key)

    @cached_property
    def platform_ca(self) -> Issued:
        """The CA of multi-package platforms."""
        return self._under_root(names.PLATFORM_CA, "PCK platform CA", _CA_YEARS, 0)

    @cached_property
    def processor_ca(self) -> Issued:
        """The CA of single-package platforms."""
        return self._under_root(names.PROCESSOR_CA, "PCK processor CA", _CA_YEARS, 0)

    @cached_property
    def tcb_signing(self) -> Issued:
        """The certificate that signs TCB info and enclave identities."""
        return self._under_root(names.TCB_SIGNING, "TCB signing", _LEAF_YEARS, None)

    def pck_ca(self, ca: PckCa) -> Issued:
        """The intermediate CA of that kind."""
        return self.platform_ca if ca is PckCa.PLATFORM else self.processor_ca

    def pck(self, platform: PlatformIdentity, tcb: PlatformTcb) -> Issued:
        """The PCK certificate of ``platform`` at ``tcb``; its key depends on both, as on hardware."""
        purpose = f"PCK {platform.ca} {platform.ppid.hex()} {tcb.raw_tcb.hex()}"
        key = self._key(purpose)
        issuer = self.pck_ca(platform.ca)
        common_name = names.PLATFORM_CA if platform.ca is PckCa.PLATFORM else names.PROCESSOR_CA
        builder = self._builder(names.PCK, common_name, key, purpose, _LEAF_YEARS)
        builder = self._extended(
            builder,
            subject_key=key,
            issuer_key=issuer.key,
            crl=f"/sgx/certification/v4/pckcrl?ca={platform.ca}&encoding=der",
            path_length=None,
        )
        builder = builder.add_extension(
            x509.UnrecognizedExtension(ObjectIdentifier(SGX_EXTENSION), platform.sgx_extension(tcb)),
            critical=False,
        )
        return Issued(self._sign(builder, issuer.key), key)

    def pck_chain(self, platform: PlatformIdentity, tcb: PlatformTcb) -> str:
        """PEM of the PCK certificate, its CA and the root: what a quote carries."""
        return pem_chain(self.pck(platform, tcb), self.pck_ca(platform.ca), self.root)

    def _crl(
        self,
        issuer: Issued,
        this_update: dt.datetime,
        next_update: dt.datetime,
        revoked: Iterable[x509.Certificate],
        number: int,
    ) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(this_update)
            .next_update(next_update)
        )
        for certificate in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(certificate.serial_number)
                .revocation_date(this_update)
                .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
                .build()
            )
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public), critical=False
        )
        crl = builder.sign(issuer.key.private, hashes.SHA256(), ecdsa_deterministic=True)
        return crl.public_bytes(Encoding.DER)

    def root_crl(
        self,
        this_update: dt.datetime,
        next_update: dt.datetime,
        revoked: Iterable[x509.Certificate] = (),
        number: int = 1,
    ) -> bytes:
        """DER of the root CA's revocation list: intermediate CAs and the TCB signing certificate."""
        return self._crl(self.root, this_update, next_update, revoked, number)

    def pck_crl(
        self,
        ca: PckCa,
        this_update: dt.datetime,
        next_update: dt.datetime,
        revoked: Iterable[x509.Certificate] = (),
        number: int = 1,
    ) -> bytes:
        """DER of a PCK CA's revocation list."""
        return self._crl(self.pck_ca(ca), this_update, next_update, revoked, number)

"""The TD quoting enclave: turns a TDREPORT of its own machine into a quote.

As on hardware it holds an attestation key, certified by the provisioning certification enclave: the
enclave's own report, whose REPORTDATA holds the hash of that key, is signed with the PCK.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from swtdx.arch.report_structs import TDINFO

from . import tdreport
from .errors import ReportRejected
from .keys import SigningKey, derive
from .pki import Pki
from .qgs.messages import PlatformInfo
from .quote import SGX_REPORT, BodyType, signature_data, signed_part, td_body
from .sgx_platform import PlatformIdentity, PlatformTcb
from .tdreport import TDINFO_OFFSET, ReportVerifier

#: QE authentication data.  dcap-qvl accepts 32 bytes only; Intel's enclave puts these there.
_QE_AUTH_DATA: Final = bytes(range(32))


def _name(what: str) -> bytes:
    return hashlib.sha256(f"swtdx simulated TD quoting enclave: {what}".encode()).digest()


@dataclass(frozen=True)
class QeIdentity:
    """What the TD quoting enclave's own SGX report says about it.

    ``mrsigner`` and ``mrenclave`` have 32 bytes; ``attributes`` 16: flags (u64 little-endian: INIT,
    MODE64BIT, PROVISION_KEY) and XFRM (x87, SSE, AVX ...).
    """

    isvsvn: int = 4
    isvprodid: int = 2
    miscselect: int = 0
    attributes: bytes = bytes.fromhex("1500000000000000e700000000000000")
    mrsigner: bytes = field(default_factory=lambda: _name("signer"))
    mrenclave: bytes = field(default_factory=lambda: _name("code"))


class TdQuotingEnclave:
    """Signs quotes for the TDREPORTs of one machine.

    Args:
        pki: the maker's certificates.
        platform: the machine.
        tcb: the machine's TCB, as its PCK certificate says it.
        verifier: the machine's check of its own reports.
        identity: the enclave's measurements; change them to play an old or a wrong one.
        version: of the quotes that it makes when it is not told, 4 or 5; None for whatever a report needs.
    """

    def __init__(
        self,
        pki: Pki,
        platform: PlatformIdentity,
        tcb: PlatformTcb,
        verifier: ReportVerifier,
        identity: QeIdentity | None = None,
        version: int | None = None,
    ) -> None:
        self.version = version
        self.pki = pki
        self.platform = platform
        self.tcb = tcb
        self.verifier = verifier
        self.identity = identity or QeIdentity()
        #: 20 bytes of header user data: QE-ID (16 bytes, of this platform), then zeros.
        self.user_data = derive(pki.seed, f"QE-ID {platform.ppid.hex()}", 16) + bytes(4)

    @cached_property
    def attestation_key(self) -> SigningKey:
        """The key that signs quotes."""
        return SigningKey.derived(
            self.pki.seed, f"attestation key {self.platform.ppid.hex()} {self.tcb.raw_tcb.hex()}"
        )

    @cached_property
    def qe_report(self) -> bytes:
        """The enclave's SGX report body, 384 bytes, binding the attestation key."""
        report = SGX_REPORT.new()
        SGX_REPORT.cpusvn.set(report, self.tcb.cpusvn)
        SGX_REPORT.miscselect.set(report, self.identity.miscselect)
        SGX_REPORT.attributes.set(report, self.identity.attributes)
        SGX_REPORT.mrenclave.set(report, self.identity.mrenclave)
        SGX_REPORT.mrsigner.set(report, self.identity.mrsigner)
        SGX_REPORT.isvprodid.set(report, self.identity.isvprodid)
        SGX_REPORT.isvsvn.set(report, self.identity.isvsvn)
        bound = hashlib.sha256(self.attestation_key.public_raw + _QE_AUTH_DATA).digest()
        SGX_REPORT.reportdata.set(report, bound + bytes(32))
        return bytes(report)

    @cached_property
    def qe_report_signature(self) -> bytes:
        """The PCK's signature over the enclave's report: what the provisioning enclave adds."""
        return self.pki.pck(self.platform, self.tcb).key.sign(self.qe_report)

    @cached_property
    def pck_chain(self) -> bytes:
        """The certification data: PCK, CA and root in PEM."""
        return self.pki.pck_chain(self.platform, self.tcb).encode()

    def platform_info(self) -> PlatformInfo:
        """What the quote generation service says about the platform."""
        return PlatformInfo(
            tdqe_isvsvn=self.identity.isvsvn,
            pce_isvsvn=self.tcb.pcesvn,
            platform_id=self.user_data[:16],
            cpusvn=self.tcb.cpusvn,
        )

    def quote(self, report: bytes, *, version: int | None = None, body: BodyType | None = None) -> bytes:
        """The quote for a TDREPORT (1024 bytes) of this machine.

        Without ``version``, a TD that has a service TD bound gets version 5 with body 1.5, which alone
        can say so, and any other TD version 4.  Version 5 without ``body`` has body 1.5.

        Raises:
            ReportRejected: the TDREPORT is not one of this machine, or the version cannot carry it.
        """
        tdreport.check(report, self.verifier)
        servtd = any(TDINFO.servtd_hash.get(report, TDINFO_OFFSET))
        if version is None and body is None:
            version = self.version
        if version is None:
            version = 5 if servtd or body is not None else 4
        if version not in (4, 5):
            raise ReportRejected(f"quote version {version} cannot be made; 4 and 5 can")
        if body is None:
            body = BodyType.TD_1_5 if version == 5 else BodyType.TD_1_0
        if body not in (BodyType.TD_1_0, BodyType.TD_1_5) or (version == 4 and body is not BodyType.TD_1_0):
            raise ReportRejected(f"a version {version} quote of a TD cannot have body type {body.name}")
        if servtd and body is not BodyType.TD_1_5:
            raise ReportRejected("the TD has a service TD bound; only version 5 with body 1.5 can say so")
        signed = signed_part(version, self.user_data, body, td_body(report, body))
        return signed + signature_data(
            self.attestation_key.sign(signed),
            self.attestation_key.public_raw,
            self.qe_report,
            self.qe_report_signature,
            _QE_AUTH_DATA,
            self.pck_chain,
        )

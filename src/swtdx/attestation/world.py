"""A world: one platform, what the maker says about it, and what is wrong with that, if anything.

From a world come quotes and collateral that belong together; the scenario files, the collateral
service and the test vectors are all made of worlds.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Final

from . import collateral as col
from .collateral import Collateral, ModuleIdentity, Rating, Signed, SvnLevel, TcbLevel, TcbStatus, Validity
from .enclave import QeIdentity, TdQuotingEnclave
from .keys import DEFAULT_SEED
from .pki import PCS_URL, Issued, Pki, pem_chain
from .quote import BodyType
from .sgx_platform import COMPONENTS, PckCa, PlatformIdentity, PlatformTcb
from .tdreport import ReportKey, ReportVerifier, TdReportFields

#: The instant at which scenarios and test vectors play.
NOW: Final = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)

#: Days for which collateral holds, as Intel's does.
LIFETIME: Final = dt.timedelta(days=30)

_BEHIND: Final = {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED, TcbStatus.REVOKED}
_ZERO: Final = (0,) * COMPONENTS


class Fault(StrEnum):
    """Something wrong with the world."""

    TCB_INFO_EXPIRED = "tcb-info-expired"
    TCB_INFO_FUTURE = "tcb-info-future"
    TCB_INFO_WRONG_ISSUER = "tcb-info-wrong-issuer"
    TCB_INFO_WRONG_KEY = "tcb-info-wrong-key"
    TCB_INFO_WRONG_FMSPC = "tcb-info-wrong-fmspc"
    TCB_INFO_FOR_SGX = "tcb-info-for-sgx"
    TCB_BELOW_ALL_LEVELS = "tcb-below-all-levels"
    MODULE_UNKNOWN = "module-unknown"
    MODULE_BELOW_ALL_LEVELS = "module-below-all-levels"
    MODULE_WRONG_SIGNER = "module-wrong-signer"
    QE_IDENTITY_EXPIRED = "qe-identity-expired"
    QE_IDENTITY_FUTURE = "qe-identity-future"
    QE_IDENTITY_WRONG_ISSUER = "qe-identity-wrong-issuer"
    QE_IDENTITY_WRONG_KEY = "qe-identity-wrong-key"
    QE_IDENTITY_FOR_SGX = "qe-identity-for-sgx"
    QE_BELOW_ALL_LEVELS = "qe-below-all-levels"
    QE_WRONG_SIGNER = "qe-wrong-signer"
    QE_WRONG_PRODUCT = "qe-wrong-product"
    QE_DEBUG = "qe-debug"
    ROOT_CRL_STALE = "root-crl-stale"
    ROOT_CRL_WRONG_ISSUER = "root-crl-wrong-issuer"
    PCK_CRL_STALE = "pck-crl-stale"
    PCK_CRL_WRONG_ISSUER = "pck-crl-wrong-issuer"
    PCK_REVOKED = "pck-revoked"
    PCK_CA_REVOKED = "pck-ca-revoked"
    TCB_SIGNING_REVOKED = "tcb-signing-revoked"
    PCK_WRONG_ISSUER = "pck-wrong-issuer"


@dataclass(frozen=True)
class Standing:
    """How the maker rates something, and which advisories it names."""

    status: TcbStatus = TcbStatus.UP_TO_DATE
    advisories: tuple[str, ...] = ()


@dataclass(frozen=True)
class World:
    """One platform and everything the maker publishes about it.

    Args:
        seed: the maker's and the platform's seed.
        now: the instant to judge from; collateral is issued a day before.
        ca: which PCK CA certifies the platform.
        tcb: the platform's TCB.
        tee_tcb_svn: TEE_TCB_SVN (16 bytes) at the TD's launch; byte 0 ISVSVN, byte 1 major version.
        tee_tcb_svn2: the current one, after a TD-preserving update of the module.
        mrsignerseam: signer of the TDX module, 48 bytes.
        platform, module, current_module, qe: how they are rated.  ``current_module`` counts only where
            ``tee_tcb_svn2`` has another ISVSVN than ``tee_tcb_svn``.
        qe_identity: the quoting enclave that is running.
        faults: what is wrong.
        evaluation_number: edition of the ratings (``tcbEvaluationDataNumber``).
        pcs_url: base URL in the certificates' CRL distribution points.
    """

    seed: bytes = DEFAULT_SEED
    now: dt.datetime = NOW
    ca: PckCa = PckCa.PLATFORM
    tcb: PlatformTcb = field(default_factory=PlatformTcb)
    tee_tcb_svn: bytes = bytes((5, 1, 2)) + bytes(13)
    tee_tcb_svn2: bytes = bytes((5, 1, 2)) + bytes(13)
    mrsignerseam: bytes = bytes(48)
    platform: Standing = Standing()
    module: Standing = Standing()
    current_module: Standing = Standing()
    qe: Standing = Standing()
    qe_identity: QeIdentity = field(default_factory=QeIdentity)
    faults: frozenset[Fault] = frozenset()
    evaluation_number: int = 17
    pcs_url: str = PCS_URL

    def __post_init__(self) -> None:
        running = self.qe_identity
        if Fault.QE_WRONG_SIGNER in self.faults:
            running = replace(running, mrsigner=hashlib.sha256(b"somebody else's signer").digest())
        if Fault.QE_WRONG_PRODUCT in self.faults:
            running = replace(running, isvprodid=running.isvprodid + 1)
        if Fault.QE_DEBUG in self.faults:
            # DEBUG is bit 1 of the enclave's attribute flags.
            flags = bytes((running.attributes[0] | 2,)) + running.attributes[1:]
            running = replace(running, attributes=flags)
        object.__setattr__(self, "running_qe", running)

    #: The quoting enclave as it runs, faults applied.
    running_qe: QeIdentity = field(init=False, repr=False, compare=False)

    @cached_property
    def pki(self) -> Pki:
        """The maker's certificates."""
        return Pki(self.seed, pcs_url=self.pcs_url)

    @cached_property
    def impostor(self) -> Pki:
        """Certificates with the same names under another root key."""
        return Pki(self.seed, pcs_url=self.pcs_url, label="impostor: ")

    @cached_property
    def platform_identity(self) -> PlatformIdentity:
        """The platform."""
        return PlatformIdentity.from_seed(self.seed, self.ca)

    @cached_property
    def pck(self) -> Issued:
        """The platform's PCK certificate and key."""
        return self._quoting_pki.pck(self.platform_identity, self.tcb)

    @property
    def _quoting_pki(self) -> Pki:
        return self.impostor if Fault.PCK_WRONG_ISSUER in self.faults else self.pki

    def enclave(self, verifier: ReportVerifier, version: int | None = None) -> TdQuotingEnclave:
        """The platform's TD quoting enclave, which asks ``verifier`` about reports.

        ``version``: of the quotes that it makes, 4 or 5; None for whatever a report needs.
        """
        return TdQuotingEnclave(
            self._quoting_pki, self.platform_identity, self.tcb, verifier, self.running_qe, version
        )

    @cached_property
    def report_key(self) -> ReportKey:
        """The MAC key of reports made without a machine."""
        return ReportKey.from_seed(self.seed)

    def report_fields(self) -> TdReportFields:
        """An ordinary TD's report in this world."""
        return TdReportFields(
            cpusvn=self.tcb.cpusvn,
            tee_tcb_svn=self.tee_tcb_svn,
            tee_tcb_svn2=self.tee_tcb_svn2,
            mrsignerseam=self.mrsignerseam,
        )

    def quote(
        self,
        report: TdReportFields | None = None,
        *,
        version: int | None = None,
        body: BodyType | None = None,
    ) -> bytes:
        """A quote over a report made without a machine."""
        made = (report or self.report_fields()).report(self.report_key)
        return self.enclave(self.report_key).quote(made, version=version, body=body)

    # -- what the maker publishes ---------------------------------------------------------------

    @property
    def issued(self) -> dt.datetime:
        """When the collateral was issued, unless a fault says otherwise."""
        return self.now - dt.timedelta(days=1)

    def _window(self, expired: Fault | None, future: Fault | None) -> tuple[dt.datetime, dt.datetime]:
        if expired in self.faults:
            return self.issued - LIFETIME, self.now - dt.timedelta(seconds=1)
        if future in self.faults:
            return self.now + dt.timedelta(days=1), self.now + LIFETIME
        return self.issued, self.issued + LIFETIME

    def validity(self, expired: Fault | None = None, future: Fault | None = None) -> Validity:
        """Dates of a signed document, as far as the two faults allow."""
        return Validity(*self._window(expired, future), self.evaluation_number)

    def _rating(self, standing: Standing) -> Rating:
        # A level that is behind was last good a year ago; the others are of the last recovery.
        age = 395 if standing.status in _BEHIND else 60
        day = (self.now - dt.timedelta(days=age)).replace(hour=0, minute=0, second=0, microsecond=0)
        return Rating(standing.status, day, standing.advisories)

    @property
    def _newest(self) -> Rating:
        return self._rating(Standing())

    def tcb_levels(self) -> tuple[TcbLevel, ...]:
        """The platform levels, newest first: the platform reaches the one with its standing."""
        # The module's own SVNs (components 0 and 1) are rated by the module identities.
        tdx = (0, 0, *self.tee_tcb_svn[2:])
        raised = (self.tcb.components[0] + 1, *self.tcb.components[1:])
        newer = TcbLevel(raised, self.tcb.pcesvn, tdx, self._newest)
        if Fault.TCB_BELOW_ALL_LEVELS in self.faults:
            return (newer,)
        reached = TcbLevel(self.tcb.components, self.tcb.pcesvn, tdx, self._rating(self.platform))
        oldest = TcbLevel(_ZERO, 5, _ZERO, self._rating(Standing(TcbStatus.OUT_OF_DATE)))
        return (*((newer,) if self.platform.status in _BEHIND else ()), reached, oldest)

    def _svn_levels(self, standings: dict[int, Standing], too_low: Fault) -> tuple[SvnLevel, ...]:
        newest = max(standings)
        if too_low in self.faults:
            return (SvnLevel(newest + 1, self._newest),)
        levels = [SvnLevel(svn, self._rating(standings[svn])) for svn in sorted(standings, reverse=True)]
        if standings[newest].status in _BEHIND:
            levels.insert(0, SvnLevel(newest + 1, self._newest))
        return tuple(levels)

    def module_identities(self) -> dict[int, ModuleIdentity]:
        """The TDX modules that the maker knows, by major version."""
        if Fault.MODULE_UNKNOWN in self.faults:
            return {}
        signer = self.mrsignerseam
        if Fault.MODULE_WRONG_SIGNER in self.faults:
            signer = hashlib.sha384(b"somebody else's module signer").digest()
        # Without an update both SVNs are the same, and the launch standing is the one that counts.
        standings = {self.tee_tcb_svn2[0]: self.current_module, self.tee_tcb_svn[0]: self.module}
        levels = self._svn_levels(standings, Fault.MODULE_BELOW_ALL_LEVELS)
        return {self.tee_tcb_svn[1]: ModuleIdentity(signer, bytes(8), levels)}

    def _signing(self, wrong_issuer: Fault, wrong_key: Fault, text: str) -> Signed:
        pki = self.impostor if wrong_issuer in self.faults else self.pki
        key = (self.impostor if wrong_key in self.faults else pki).tcb_signing.key
        return Signed.by(key, pem_chain(pki.tcb_signing, pki.root), text)

    def signed_tcb_info(self, kind: str = "TDX") -> Signed:
        """TCB info ("TDX" or "SGX") and its signature."""
        if Fault.TCB_INFO_FOR_SGX in self.faults:
            kind = "SGX"
        fmspc = self.platform_identity.fmspc
        if Fault.TCB_INFO_WRONG_FMSPC in self.faults:
            fmspc = bytes((fmspc[0] ^ 1,)) + fmspc[1:]
        text = col.tcb_info(
            kind=kind,
            fmspc=fmspc,
            pceid=self.platform_identity.pceid,
            validity=self.validity(Fault.TCB_INFO_EXPIRED, Fault.TCB_INFO_FUTURE),
            modules=self.module_identities(),
            base_module=ModuleIdentity(self.mrsignerseam, bytes(8), ()),
            levels=self.tcb_levels(),
        )
        return self._signing(Fault.TCB_INFO_WRONG_ISSUER, Fault.TCB_INFO_WRONG_KEY, text)

    def signed_old_tcb_info(self) -> Signed:
        """SGX TCB info in version 2 and its signature: what API version 3 serves."""
        text = col.old_tcb_info(
            fmspc=self.platform_identity.fmspc,
            pceid=self.platform_identity.pceid,
            validity=self.validity(Fault.TCB_INFO_EXPIRED, Fault.TCB_INFO_FUTURE),
            levels=self.tcb_levels(),
        )
        return self._signing(Fault.TCB_INFO_WRONG_ISSUER, Fault.TCB_INFO_WRONG_KEY, text)

    def signed_identity(self, kind: str = "TD_QE") -> Signed:
        """Enclave identity ("TD_QE", "QE", "QVE" or "QAE") and its signature."""
        if Fault.QE_IDENTITY_FOR_SGX in self.faults:
            kind = "QE"
        text = col.enclave_identity(
            kind=kind,
            validity=self.validity(Fault.QE_IDENTITY_EXPIRED, Fault.QE_IDENTITY_FUTURE),
            mrsigner=self.qe_identity.mrsigner,
            isvprodid={"TD_QE": self.qe_identity.isvprodid, "QE": 1, "QVE": 2, "QAE": 3}[kind],
            levels=self._svn_levels({self.qe_identity.isvsvn: self.qe}, Fault.QE_BELOW_ALL_LEVELS),
        )
        return self._signing(Fault.QE_IDENTITY_WRONG_ISSUER, Fault.QE_IDENTITY_WRONG_KEY, text)

    def signed_evaluation_numbers(self, kind: str, numbers: list[int]) -> Signed:
        """The editions of ratings on offer, newest first; each is half a year older than the last."""
        first = self._newest.date
        editions = {number: first - i * dt.timedelta(days=182) for i, number in enumerate(numbers)}
        text = col.evaluation_numbers(kind, self.validity(), editions)
        return Signed.by(self.pki.tcb_signing.key, pem_chain(self.pki.tcb_signing, self.pki.root), text)

    def root_crl(self) -> bytes:
        """The root CA's revocation list, DER."""
        pki = self.impostor if Fault.ROOT_CRL_WRONG_ISSUER in self.faults else self.pki
        revoked = []
        if Fault.PCK_CA_REVOKED in self.faults:
            revoked.append(self.pki.pck_ca(self.ca).certificate)
        if Fault.TCB_SIGNING_REVOKED in self.faults:
            revoked.append(self.pki.tcb_signing.certificate)
        return pki.root_crl(*self._window(Fault.ROOT_CRL_STALE, None), revoked)

    def pck_crl(self, ca: PckCa | None = None) -> bytes:
        """A PCK CA's revocation list, DER; the platform's own CA's unless told otherwise."""
        pki = self.impostor if Fault.PCK_CRL_WRONG_ISSUER in self.faults else self.pki
        ca = ca or self.ca
        revoked = [self.pck.certificate] if Fault.PCK_REVOKED in self.faults and ca is self.ca else []
        return pki.pck_crl(ca, *self._window(Fault.PCK_CRL_STALE, None), revoked)

    def pck_ca_chain(self, ca: PckCa | None = None) -> str:
        """PEM of a PCK CA and the root."""
        return pem_chain(self.pki.pck_ca(ca or self.ca), self.pki.root)

    def collateral(self) -> Collateral:
        """Everything together."""
        info, identity = self.signed_tcb_info(), self.signed_identity()
        return Collateral(
            pck_crl_issuer_chain=self.pck_ca_chain(),
            root_ca_crl=self.root_crl(),
            pck_crl=self.pck_crl(),
            tcb_info_issuer_chain=info.chain,
            tcb_info=info.text,
            tcb_info_signature=info.signature,
            qe_identity_issuer_chain=identity.chain,
            qe_identity=identity.text,
            qe_identity_signature=identity.signature,
        )

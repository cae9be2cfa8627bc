"""Verification of TD quotes, by dcap-qvl, with a policy and a verdict that says what failed.

No signature is checked here: dcap-qvl does that.  This file chooses the root, refuses the simulated
one unless it was asked for, applies the policy, and turns the answer into something to read.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .collateral import Collateral, TcbStatus
from .differences import differences, platform_of
from .errors import AttestationError, MissingDependency, QuoteFormatError
from .hints import policy_key, with_dates
from .names import is_simulated
from .policy import Policy
from .quote import ParsedQuote

# Which check a message of dcap-qvl (src/verify.rs, src/policy/simple.rs of version 0.7) is about, in
# the order in which the words are looked for.
_CHECKS: Final[tuple[tuple[str, tuple[str, ...]], ...]] = (
    ("root certificate", ("load root ca", "parse root CA certificate")),
    ("certificate chain", ("verify certificate chain",)),
    ("root CA revocation list", ("root CA CRL", "CrlExpired", "CertRevoked")),
    ("PCK revocation list", ("PCK CRL",)),
    ("TDX module", ("TDX module",)),
    ("QE identity", ("QE Identity", "QeIdentity", "qe_identity")),
    ("TCB info", ("TCBInfo", "TcbInfo", "TCB Info", "TCB info", "tcb_info", "Fmspc mismatch")),
    ("quote format", ("decode quote", "quote version", "QE vendor", "TEE type", "key type", "auth data")),
    ("quoting enclave", ("qe_report", "QE report", "QE MRSIGNER", "QE ISV", "QE MISC", "QE ATTR")),
    ("quote signature", ("ISV enclave report signature", "signed quote scope")),
    (
        "TD attributes",
        (
            "Debug mode",
            "TD profiling",
            "Reserved bits",
            "TD migration",
            "SERVTD_EXT",
            "SEPT_VE",
            "MR service TD",
        ),
    ),
    ("TCB status", ("TCB status", "No matching TCB level")),
    ("PCK certificate", ("PCK", "Intel extension", "in quote")),
    ("certificate chain", ("certificate", "Certificate", "Cert", "Issuer", "issuer")),
)

#: What the checks are called that are not dcap-qvl's.
ROOT_CHOICE: Final = "root of trust"
CLAIMS: Final = "policy: claims"
TCB_POLICY: Final = "policy: TCB"


def failed_check(message: str) -> str:
    """Which check an error message of dcap-qvl comes from."""
    for check, words in _CHECKS:
        if any(word in message for word in words):
            return check
    return "verification"


def _dcap() -> Any:
    try:
        import dcap_qvl
    except ImportError as error:
        raise MissingDependency(
            "verifying needs dcap-qvl (extra 'attestation'): pip install dcap-qvl"
        ) from error
    return dcap_qvl


def load_root(data: bytes) -> bytes:
    """A root certificate as DER, from DER or PEM.

    Raises:
        AttestationError: it is neither.
    """
    try:
        if data.lstrip().startswith(b"-----BEGIN"):
            return x509.load_pem_x509_certificate(data).public_bytes(Encoding.DER)
        x509.load_der_x509_certificate(data)
    except ValueError as error:
        raise AttestationError(f"the root certificate is neither PEM nor DER: {error}") from None
    return bytes(data)


@functools.lru_cache(maxsize=32)
def _simulated(der: bytes) -> bool:
    return is_simulated(x509.load_der_x509_certificate(der))


def quote_is_simulated(quote: bytes) -> bool:
    """Whether a quote's PCK chain says that swtdx made it (a hint for people, not a check)."""
    try:
        chain = x509.load_pem_x509_certificates(ParsedQuote(quote).pck_chain().encode())
    except ValueError:
        return False
    return any(is_simulated(certificate) for certificate in chain)


@dataclass(frozen=True)
class Verdict:
    """The outcome.

    ``check`` names the check that failed and ``reason`` says how; both are empty when accepted.
    ``authentic`` is true when every signature and date was good, so that the claims can be believed
    even though a policy refused them.  ``differences`` are lines about what of the quote is behind, or
    other than, what the collateral says; ``policy_key`` is what a policy would have to say for a refusal
    by a policy not to come.
    """

    accepted: bool
    authentic: bool
    check: str
    reason: str
    quote: bytes = field(repr=False)
    now: int
    simulated: bool
    root: bytes = field(repr=False, default=b"")
    policy: Policy = field(repr=False, default_factory=Policy)
    raw_claims: Any = field(repr=False, default=None)
    differences: tuple[str, ...] = ()
    policy_key: str = ""

    @functools.cached_property
    def claims(self) -> dict[str, Any]:
        """dcap-qvl's claims; empty unless :attr:`authentic`."""
        return json.loads(self.raw_claims.to_json()) if self.raw_claims is not None else {}

    @functools.cached_property
    def parsed(self) -> ParsedQuote | None:
        """The quote taken apart, or None when it is no TD quote."""
        try:
            return ParsedQuote(self.quote)
        except QuoteFormatError:
            return None

    @property
    def status(self) -> str:
        """The TCB status, "" when not authentic."""
        return str(self.claims["tcb"]["status"]) if self.claims else ""

    @property
    def advisories(self) -> list[str]:
        """The advisories that apply."""
        return list(self.claims["tcb"]["advisory_ids"]) if self.claims else []

    def document(self) -> dict[str, Any]:
        """The verdict as plain data, for JSON."""
        parsed = self.parsed
        out: dict[str, Any] = {
            "accepted": self.accepted,
            "authentic": self.authentic,
            "failed_check": self.check or None,
            "reason": self.reason or None,
            "differences": list(self.differences),
            "policy_key": self.policy_key or None,
            "verified_at": dt.datetime.fromtimestamp(self.now, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "policy": self.policy.name,
            "root": {
                "simulated": self.simulated,
                "sha256": hashlib.sha256(self.root).hexdigest() if self.root else None,
            },
        }
        if parsed is not None:
            out["quote"] = {"version": parsed.version, "body": parsed.body_type.label}
            out["td"] = {name: value.hex() for name, value in parsed.body().items()}
        if self.claims:
            platform = self.claims["platform"]
            pck = platform["pck"]
            out["tcb"] = {
                "status": self.status,
                "advisories": self.advisories,
                "evaluation_number": self.claims["tcb"]["eval_data_number"],
                "platform_status": platform["tcb_level"]["tcbStatus"],
                "current_status": (platform["current_tcb_level"] or {}).get("tcbStatus"),
                "qe_status": self.claims["qe"]["tcb_level"]["tcbStatus"],
            }
            out["platform"] = {
                name: bytes(pck[name]).hex() for name in ("ppid", "cpu_svn", "pce_id", "fmspc")
            } | {"pce_svn": pck["pce_svn"], "sgx_type": pck["sgx_type"]}
            out["collateral_expires"] = self.claims["earliest_expiration_date"]
        return out


class Verifier:
    """Verifies quotes under one root with one policy.

    Args:
        root: the trusted root, DER or PEM; None for Intel's, which dcap-qvl has built in.
        policy: what is accepted.
        accept_simulated: without it, a root that says "simulated" is refused, even if the caller passes it.

    Raises:
        AttestationError: the root is no certificate.
        MissingDependency: dcap-qvl is not installed.
    """

    def __init__(
        self,
        root: bytes | None = None,
        policy: Policy | None = None,
        *,
        accept_simulated: bool = False,
    ) -> None:
        self._dcap = _dcap()
        self.root = load_root(root) if root is not None else b""
        self.policy = policy or Policy()
        self.simulated = bool(self.root) and _simulated(self.root)
        self.accept_simulated = accept_simulated
        self._verifier = self._dcap.QuoteVerifier(self.root or None)
        self._policy_at: tuple[int, Any] = (-1, None)
        self._collateral: tuple[Collateral, Any] | None = None

    def _tcb_policy(self, now: int) -> Any:
        if self._policy_at[0] != now:
            self._policy_at = (now, self.policy.dcap(now))
        return self._policy_at[1]

    def _native(self, collateral: Any) -> Any:
        if not isinstance(collateral, Collateral):
            return collateral
        if self._collateral is None or self._collateral[0] is not collateral:
            self._collateral = (collateral, to_dcap(collateral))
        return self._collateral[1]

    def verify(self, quote: bytes, collateral: Any, now: dt.datetime | int | None = None) -> Verdict:
        """Verify ``quote`` with ``collateral`` (a :class:`Collateral` or dcap-qvl's) at ``now``.

        ``now`` is a timezone-aware datetime or Unix seconds; the clock's time when None.  A quote that
        fails is an answer, not an exception.
        """
        if now is None:
            now = dt.datetime.now(dt.UTC)
        seconds = now if isinstance(now, int) else int(now.timestamp())
        if self.simulated and not self.accept_simulated:
            return self._refused(
                quote,
                seconds,
                ROOT_CHOICE,
                "the root certificate is a simulated one, made by swtdx: it proves nothing about "
                "hardware. Accept it explicitly if that is what you want "
                "(--accept-simulated, or accept_simulated=True)",
            )
        native = self._native(collateral)
        try:
            claims = self._verifier.verify_with_policy(quote, native, seconds, self._tcb_policy(seconds))
        except ValueError as error:
            verdict = self._explain(quote, native, seconds, error)
        else:
            verdict = self.conclude(quote, claims, seconds)
        if isinstance(collateral, Collateral) and not (
            verdict.accepted and verdict.status == TcbStatus.UP_TO_DATE
        ):
            verdict = replace(verdict, differences=tuple(differences(quote, collateral, seconds)))
        return verdict

    def conclude(self, quote: bytes, claims: Any, now: int) -> Verdict:
        """The verdict on a quote of which dcap-qvl has given ``claims`` at ``now`` (Unix seconds).

        What is left is the policy's half about measurements.
        """
        try:
            parsed = ParsedQuote(quote)
        except QuoteFormatError as error:
            # dcap-qvl verifies SGX quotes as well.
            return self._refused(quote, now, CLAIMS, str(error), claims)
        if mismatch := self.policy.mismatch(parsed.version, parsed.body()):
            return self._refused(quote, now, CLAIMS, mismatch, claims)
        return Verdict(True, True, "", "", quote, now, self.simulated, self.root, self.policy, claims)

    def _refused(self, quote: bytes, now: int, check: str, reason: str, claims: Any = None) -> Verdict:
        return Verdict(
            False,
            claims is not None,
            check,
            with_dates(reason),
            quote,
            now,
            self.simulated,
            self.root,
            self.policy,
            claims,
            policy_key=self._policy_key(quote, reason) if check in (CLAIMS, TCB_POLICY) else "",
        )

    def _policy_key(self, quote: bytes, reason: str) -> str:
        """The key that would allow it, with the others of the same section that would be missed next."""
        key = policy_key(reason)
        if not key.startswith("[platform] allow_"):
            return key
        platform = platform_of(ParsedQuote(quote))
        if platform is None:
            return key
        facts, policy = platform.facts, self.policy
        missing = [
            f"{name} = true"
            for name, on, allowed in (
                ("allow_dynamic", facts.dynamic_platform, policy.allow_dynamic),
                ("allow_cached_keys", facts.cached_keys, policy.allow_cached_keys),
                ("allow_smt", facts.smt_enabled, policy.allow_smt),
            )
            if on and not allowed
        ]
        return f"[platform] {', '.join(missing)}" if missing else key

    def _explain(self, quote: bytes, native: Any, now: int, refusal: ValueError) -> Verdict:
        """Why a quote was refused: by its TCB policy if all else is well, else by what was wrong."""
        try:
            policy = self._dcap.QuotePolicy.claims_only(now)
            claims = self._verifier.verify_with_policy(quote, native, now, policy)
        except ValueError as error:
            reason = _sentence(error)
        else:
            return self._refused(quote, now, TCB_POLICY, _sentence(refusal), claims)
        # The one-shot function gives the chain of causes, the policy function only the topmost one.
        try:
            if self.root:
                self._dcap.verify_with_root_ca(quote, native, self.root, now)
            else:
                self._dcap.verify(quote, native, now)
        except ValueError as error:
            reason = _sentence(error)
        check = failed_check(reason)
        if quote_is_simulated(quote) and not self.simulated:
            reason += (
                ". The quote was made by swtdx: it can only verify under its machine's simulated root "
                "(--root FILE --accept-simulated)"
            )
        return self._refused(quote, now, check, reason)


def _sentence(error: ValueError) -> str:
    """dcap-qvl's message on one line, causes after colons."""
    lines = [line.strip() for line in str(error).removeprefix("Verification failed: ").splitlines()]
    kept = [line.removeprefix("0: ").removeprefix("1: ") for line in lines if line and line != "Caused by:"]
    return ": ".join(dict.fromkeys(kept))


def to_dcap(collateral: Collateral) -> Any:
    """The same collateral as a dcap-qvl object."""
    return _dcap().QuoteCollateralV3(
        **{name: getattr(collateral, name) for name in Collateral.__dataclass_fields__}
    )

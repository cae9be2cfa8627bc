"""A verdict as a signed attestation result: an EAR token (JWT).

EAR is draft-ietf-rats-ear ("EAT Attestation Results", an EAT profile, RFC 9711), with the trust tiers
and vector of AR4SI (draft-ietf-rats-ar4si): 2 affirming, 32 warning, 96 contraindicated, 99 failed
cryptography.  The TD's claims go where Veraison and Trustee put them, ``ear.veraison.annotated-evidence``.
"""

from __future__ import annotations

import base64
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from .collateral import TcbStatus
from .errors import AttestationError, MissingDependency
from .verify import ROOT_CHOICE, TCB_POLICY, Verdict

#: The profile URI of the EAR implementations in the field (C, Go, Rust).
PROFILE: Final = "tag:github.com,2023:veraison/ear"

_AFFIRMING: Final = 2
_WARNING: Final = 32
_CONTRAINDICATED: Final = 96
_CRYPTO_FAILED: Final = 99
_DIMENSIONS: Final = ("instance-identity", "configuration", "executables", "hardware", "runtime-opaque")


def trust_vector(verdict: Verdict) -> dict[str, int]:
    """AR4SI's trustworthiness vector for a verdict; what was not looked at is not in it."""
    if not verdict.authentic:
        # dcap-qvl looks at these after all signatures, so they are not about cryptography.
        late = {"TCB status": "hardware", "TDX module": "hardware", "TD attributes": "configuration"}
        if verdict.check in late:
            return {late[verdict.check]: _CONTRAINDICATED}
        return dict.fromkeys(_DIMENSIONS, _CRYPTO_FAILED)
    good = verdict.status == TcbStatus.UP_TO_DATE
    vector = {
        "instance-identity": _AFFIRMING,
        "configuration": _AFFIRMING,
        "hardware": _AFFIRMING if good else _WARNING,
        "runtime-opaque": _AFFIRMING,
    }
    if any(name in verdict.policy.pinned for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")):
        vector["executables"] = _AFFIRMING
    if not verdict.accepted:
        name = verdict.reason.split(" ", 1)[0]
        if verdict.check == TCB_POLICY:
            vector["hardware"] = _CONTRAINDICATED
        elif name == "mrtd" or name.startswith("rtmr"):
            vector["executables"] = _CONTRAINDICATED
        else:
            vector["configuration"] = _CONTRAINDICATED
    return vector


def tier(vector: dict[str, int]) -> str:
    """The worst tier in the vector, by AR4SI's names."""
    worst = max(vector.values(), default=0)
    if worst >= _CONTRAINDICATED:
        return "contraindicated"
    if worst >= _WARNING:
        return "warning"
    return "affirming" if worst >= _AFFIRMING else "none"


def ear_claims(verdict: Verdict, *, nonce: bytes | None = None, quote: bool = False) -> dict[str, Any]:
    """The claims of the token.

    Args:
        verdict: what to report.
        nonce: goes into ``eat_nonce``; EAT wants 8 to 64 bytes.
        quote: also put the quote itself in, as ``ear.raw-evidence``.

    Raises:
        AttestationError: the nonce has another length.
    """
    from importlib.metadata import version

    document = verdict.document()
    vector = trust_vector(verdict)
    evidence = {"quote": document.get("quote"), "body": document.get("td"), "tcb": document.get("tcb")}
    submodule: dict[str, Any] = {
        # A refusal that never looked at the evidence is not a statement about the TD.
        "ear.status": "none" if verdict.check == ROOT_CHOICE else tier(vector),
        "ear.trustworthiness-vector": {} if verdict.check == ROOT_CHOICE else vector,
        "ear.appraisal-policy-id": verdict.policy.name,
        "swtdx.simulated": verdict.simulated,
        "ear.veraison.annotated-evidence": {"tdx": evidence},
    }
    if not verdict.accepted:
        submodule["swtdx.failed-check"] = verdict.check
        submodule["swtdx.reason"] = verdict.reason
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": verdict.now,
        "ear.verifier-id": {
            "developer": "swtdx",
            "build": f"swtdx {version('swtdx')}, dcap-qvl {version('dcap-qvl')}",
        },
        "submods": {"td": submodule},
    }
    if nonce is not None:
        if not 8 <= len(nonce) <= 64:
            raise AttestationError(f"a token's nonce has 8 to 64 bytes, not {len(nonce)}")
        claims["eat_nonce"] = _base64url(nonce)
    if quote:
        claims["ear.raw-evidence"] = _base64url(verdict.quote)
    return claims


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign_token(claims: dict[str, Any], key_pem: bytes) -> str:
    """The claims as a JWT (ES256) under a P-256 private key in PEM.

    Raises:
        AttestationError: the key is not such a key.
        MissingDependency: PyJWT is not installed.
    """
    try:
        import jwt
    except ImportError as error:
        raise MissingDependency(
            "tokens need the package pyjwt (the extra 'attestation'): pip install pyjwt"
        ) from error
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise AttestationError(f"the token key is not an unencrypted private key in PEM: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AttestationError(
            "the token key must be a P-256 key: openssl ecparam -name prime256v1 -genkey -noout"
        )
    return jwt.encode(claims, key, algorithm="ES256")

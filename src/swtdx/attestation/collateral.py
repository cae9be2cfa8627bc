"""Collateral: what a verifier needs besides the quote, in the PCS's own formats.

TCB info version 3 and enclave identity version 2 are compact JSON whose exact bytes are signed
(attestation.md section 6, from Intel's PCS API version 4 as read by
go-tdx-guest ``pcs/pcs.go`` and dcap-qvl ``src/tcb_info.rs``).
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from .errors import AttestationError
from .keys import SigningKey
from .sgx_platform import check_components

# What the SVN components of a Xeon's TCB level are called in Intel's TCB info.
_SGX_KINDS: Final = (
    ("BIOS", "Early Microcode Update"),
    ("OS/VMM", "SGX Late Microcode Update"),
    ("OS/VMM", "TXT SINIT"),
    ("BIOS", ""),
    ("BIOS", ""),
    ("BIOS", ""),
    ("", ""),
    ("OS/VMM", "SEAMLDR ACM"),
)
_TDX_KINDS: Final = (
    ("OS/VMM", "TDX Module"),
    ("OS/VMM", "TDX Module"),
    ("OS/VMM", "TDX Late Microcode Update"),
)


class TcbStatus(StrEnum):
    """TCB status values.  The last two are verdicts about a TD, never written in collateral."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    REVOKED = "Revoked"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"


def timestamp(moment: dt.datetime) -> str:
    """ISO 8601 UTC with seconds, as the PCS writes it."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def compact(document: dict[str, Any]) -> str:
    """JSON without white space, keys in the order given: the text that is signed."""
    return json.dumps(document, separators=(",", ":"))


def _components(svns: tuple[int, ...], kinds: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    out = []
    for index, svn in enumerate(check_components(svns, "TCB level")):
        entry: dict[str, Any] = {"svn": svn}
        category, kind = kinds[index] if index < len(kinds) else ("", "")
        if category:
            entry["category"] = category
        if kind:
            entry["type"] = kind
        out.append(entry)
    return out


@dataclass(frozen=True)
class Rating:
    """What the maker says about a level: its status, since when, and which advisories apply below it."""

    status: TcbStatus
    date: dt.datetime
    advisories: tuple[str, ...] = ()

    def members(self) -> dict[str, Any]:
        """The JSON members of a rating."""
        out: dict[str, Any] = {"tcbDate": timestamp(self.date), "tcbStatus": str(self.status)}
        if self.advisories:
            out["advisoryIDs"] = list(self.advisories)
        return out


@dataclass(frozen=True)
class TcbLevel:
    """A platform level: reached by a platform none of whose SVNs is lower."""

    sgx: tuple[int, ...]
    pcesvn: int
    tdx: tuple[int, ...]
    rating: Rating

    def document(self, tdx: bool) -> dict[str, Any]:
        """The level's JSON, with or without the TDX components."""
        tcb: dict[str, Any] = {
            "sgxtcbcomponents": _components(self.sgx, _SGX_KINDS),
            "pcesvn": self.pcesvn,
        }
        if tdx:
            tcb["tdxtcbcomponents"] = _components(self.tdx, _TDX_KINDS)
        return {"tcb": tcb} | self.rating.members()


@dataclass(frozen=True)
class SvnLevel:
    """A level of an enclave or of a TDX module, reached by an ISVSVN that is not lower."""

    isvsvn: int
    rating: Rating

    def document(self) -> dict[str, Any]:
        """The level's JSON."""
        return {"tcb": {"isvsvn": self.isvsvn}} | self.rating.members()


@dataclass(frozen=True)
class Validity:
    """When a document was issued and until when it may be used, and which edition of ratings it is."""

    issued: dt.datetime
    next_update: dt.datetime
    evaluation_number: int

    def members(self) -> dict[str, Any]:
        """The two dates."""
        return {"issueDate": timestamp(self.issued), "nextUpdate": timestamp(self.next_update)}


@dataclass(frozen=True)
class ModuleIdentity:
    """The TDX modules of one major version: their signer (48 bytes) and SEAM attributes (8 bytes)."""

    mrsigner: bytes
    attributes: bytes
    levels: tuple[SvnLevel, ...]

    def members(self) -> dict[str, Any]:
        """The members shared by ``tdxModule`` and ``tdxModuleIdentities``."""
        return {
            "mrsigner": self.mrsigner.hex().upper(),
            "attributes": self.attributes.hex().upper(),
            "attributesMask": "F" * 16,
        }


def tcb_info(
    *,
    kind: str,
    fmspc: bytes,
    pceid: bytes,
    validity: Validity,
    modules: dict[int, ModuleIdentity],
    base_module: ModuleIdentity,
    levels: tuple[TcbLevel, ...],
) -> str:
    """TCB info, version 3: the text to sign.

    Args:
        kind: "TDX" or "SGX".
        fmspc: 6 bytes.
        pceid: 2 bytes.
        validity: dates and edition.
        modules: identities by major version (``TEE_TCB_SVN[1]``), for "TDX".
        base_module: what holds for modules of major version 0, for "TDX".
        levels: newest first.
    """
    tdx = kind == "TDX"
    document: dict[str, Any] = {"id": kind, "version": 3} | validity.members()
    document |= {"fmspc": fmspc.hex().upper(), "pceId": pceid.hex().upper(), "tcbType": 0}
    document["tcbEvaluationDataNumber"] = validity.evaluation_number
    if tdx:
        document["tdxModule"] = base_module.members()
        document["tdxModuleIdentities"] = [
            {"id": f"TDX_{major:02X}"}
            | module.members()
            | {"tcbLevels": [level.document() for level in module.levels]}
            for major, module in sorted(modules.items(), reverse=True)
        ]
    document["tcbLevels"] = [level.document(tdx) for level in levels]
    return compact(document)


def old_tcb_info(*, fmspc: bytes, pceid: bytes, validity: Validity, levels: tuple[TcbLevel, ...]) -> str:
    """SGX TCB info, version 2 (PCS API version 3): the text to sign.  Arguments: see :func:`tcb_info`."""
    document: dict[str, Any] = {"version": 2} | validity.members()
    document |= {"fmspc": fmspc.hex().upper(), "pceId": pceid.hex().upper(), "tcbType": 0}
    document["tcbEvaluationDataNumber"] = validity.evaluation_number
    document["tcbLevels"] = [
        {
            "tcb": {f"sgxtcbcomp{place:02}svn": svn for place, svn in enumerate(level.sgx, 1)}
            | {"pcesvn": level.pcesvn}
        }
        | level.rating.members()
        for level in levels
    ]
    return compact(document)


def enclave_identity(
    *,
    kind: str,
    validity: Validity,
    mrsigner: bytes,
    isvprodid: int,
    levels: tuple[SvnLevel, ...],
    miscselect: int = 0,
    attributes: bytes = bytes.fromhex("11000000000000000000000000000000"),
    attributes_mask: bytes = bytes.fromhex("fbffffffffffffff0000000000000000"),
) -> str:
    """Enclave identity, version 2: the text to sign.

    ``kind`` is "TD_QE", "QE" or "QVE"; ``mrsigner`` has 32 bytes; the default attributes ask for an
    initialised enclave with the provisioning key and let MODE64BIT and XFRM be anything, as Intel's do.
    """
    document: dict[str, Any] = {"id": kind, "version": 2} | validity.members()
    document |= {
        "tcbEvaluationDataNumber": validity.evaluation_number,
        "miscselect": miscselect.to_bytes(4, "little").hex().upper(),
        "miscselectMask": "F" * 8,
        "attributes": attributes.hex().upper(),
        "attributesMask": attributes_mask.hex().upper(),
        "mrsigner": mrsigner.hex().upper(),
        "isvprodid": isvprodid,
        "tcbLevels": [level.document() for level in levels],
    }
    return compact(document)


def evaluation_numbers(kind: str, validity: Validity, editions: dict[int, dt.datetime]) -> str:
    """TCB evaluation data numbers, version 1: the text to sign.

    ``editions`` maps the number of each edition on offer to the date of its TCB recovery event.
    """
    document: dict[str, Any] = {"id": kind, "version": 1} | validity.members()
    document["tcbEvalNumbers"] = [
        {
            "tcbEvaluationDataNumber": number,
            "tcbRecoveryEventDate": timestamp(date),
            "tcbDate": timestamp(date),
        }
        for number, date in sorted(editions.items(), reverse=True)
    ]
    return compact(document)


@dataclass(frozen=True)
class Signed:
    """A signed document: the exact text, its signature (64 bytes r ‖ s), the signer's PEM chain."""

    text: str
    signature: bytes
    chain: str

    @classmethod
    def by(cls, key: SigningKey, chain: str, text: str) -> Signed:
        """``text`` signed with ``key``."""
        return cls(text, key.sign(text.encode()), chain)

    def response(self, member: str) -> str:
        """The PCS response body: the document under ``member``, and the signature in hex."""
        return f'{{"{member}":{self.text},"signature":"{self.signature.hex()}"}}'


@dataclass(frozen=True)
class Collateral:
    """All collateral for one quote: the fields of dcap-qvl's ``QuoteCollateralV3``, by its names.

    Chains are PEM, CRLs DER, signatures 64 bytes r ‖ s.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    def to_json(self) -> str:
        """The JSON file that dcap-qvl in Rust, Python and JavaScript reads: bytes as hex."""
        document = {}
        for each in fields(self):
            value = getattr(self, each.name)
            document[each.name] = value.hex() if isinstance(value, bytes) else value
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Collateral:
        """Read what :meth:`to_json` or dcap-qvl wrote.  Unknown members are ignored.

        Raises:
            AttestationError: no JSON object, or a member is missing, or is not what it should be.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise AttestationError(f"the collateral is not JSON: {error}") from None
        if not isinstance(document, dict):
            raise AttestationError("the collateral is not a JSON object")
        values: dict[str, Any] = {}
        for each in fields(cls):
            if not isinstance(value := document.get(each.name), str):
                raise AttestationError(f"the collateral has no text member {each.name!r}")
            if each.type == "bytes":
                try:
                    values[each.name] = bytes.fromhex(value)
                except ValueError:
                    raise AttestationError(f"collateral member {each.name!r} is not hex") from None
            else:
                values[each.name] = value
        return cls(**values)

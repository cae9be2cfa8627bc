"""What stands between a quote and its collateral, in numbers: what a verifier's refusal leaves out.

Nothing is verified here; this reads what both say, and compares as verifiers do: a TCB level is reached by
a platform none of whose SVNs is lower (Intel's PCS, "Get TDX TCB Info"; dcap-qvl ``src/verify.rs``).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from .collateral import Collateral
from .errors import QuoteFormatError
from .pck import PckFacts, chain_of, pck_facts
from .quote import SGX_REPORT, ParsedQuote


def when(moment: dt.datetime) -> str:
    """A date and time for people, UTC."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(text: object) -> dt.datetime | None:
    """A date out of collateral's JSON; None if it is none."""
    try:
        moment = dt.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


@dataclass(frozen=True)
class Platform:
    """The platform that a quote claims to come from."""

    facts: PckFacts
    issuer: str
    chain: tuple[x509.Certificate, ...]


def platform_of(parsed: ParsedQuote) -> Platform | None:
    """The platform in a quote's PCK certificate, unverified; None if it carries none that can be read."""
    chain = chain_of(parsed.pck_chain())
    for certificate in chain:
        facts = pck_facts(certificate)
        if facts is not None:
            return Platform(facts, certificate.issuer.rfc4514_string(), tuple(chain))
    return None


def _object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _svns(level: dict[str, Any], member: str) -> list[tuple[int, str]]:
    """(SVN, what the component is) of each component of a level."""
    entries = level.get("tcb", {}).get(member, [])
    return [
        (int(each.get("svn", 0)), " ".join(part for part in (each.get("category"), each.get("type")) if part))
        for each in entries
    ]


def missed(level: dict[str, Any], facts: PckFacts, tee_tcb_svn: bytes, which: str = "") -> list[str]:
    """The SVNs in which a platform is below a level of TCB info: component, both values.

    ``which`` says in the lines which level it is (``lowest``).
    """
    called = f"{which} level".strip()
    # Of a module with a version of its own (TEE_TCB_SVN[1]), the module identities judge SVN and version.
    judged_apart = 2 if tee_tcb_svn[1] else 0
    behind = []
    for kind, member, have in (
        ("SGX", "sgxtcbcomponents", facts.components),
        ("TDX", "tdxtcbcomponents", tuple(tee_tcb_svn)),
    ):
        for place, ((want, what), svn) in enumerate(zip(_svns(level, member), have, strict=False)):
            if svn < want and not (kind == "TDX" and place < judged_apart):
                where = f"{member}[{place}]{': ' + what if what else ''}"
                behind.append(f"{kind} component {place + 1}: quote {svn}, {called} {want} ({where})")
    want = int(level.get("tcb", {}).get("pcesvn", 0))
    if facts.pcesvn < want:
        behind.append(f"PCESVN: quote {facts.pcesvn}, {called} {want}")
    return behind


def _level_name(level: dict[str, Any], place: int, count: int) -> str:
    which = (
        "the only"
        if count == 1
        else "the newest"
        if not place
        else "the lowest"
        if place == count - 1
        else ""
    )
    date = str(level.get("tcbDate", ""))[:10]
    return f"{which or f'number {place + 1} of {count}'} level ({level.get('tcbStatus')}, {date})"


def _levels(info: dict[str, Any], facts: PckFacts, tee_tcb_svn: bytes) -> Iterator[str]:
    levels = [each for each in info.get("tcbLevels", []) if isinstance(each, dict)]
    if not levels:
        yield "the TCB info has no levels"
        return
    reached = next(
        (place for place, level in enumerate(levels) if not missed(level, facts, tee_tcb_svn)), None
    )
    if reached is None:
        place, which = len(levels) - 1, "lowest"
        yield f"no level of the TCB info is reached; below {_level_name(levels[place], place, len(levels))}:"
    elif reached:
        place, which = 0, "newest"
        yield (
            f"the platform reaches {_level_name(levels[reached], reached, len(levels))}; below "
            f"{_level_name(levels[0], 0, len(levels))}:"
        )
    else:
        return
    yield from (f"  {each}" for each in missed(levels[place], facts, tee_tcb_svn, which))


def _module(info: dict[str, Any], body: dict[str, bytes]) -> Iterator[str]:
    svn, major = body["tee_tcb_svn"][0], body["tee_tcb_svn"][1]
    identity = info.get("tdxModule") or {}
    if major:
        name = f"TDX_{major:02X}"
        identities = {str(each.get("id")): each for each in info.get("tdxModuleIdentities") or []}
        if name not in identities:
            known = ", ".join(sorted(identities)) or "none"
            yield f"TDX Module: the quote's is {name} (TEE_TCB_SVN[1] = {major}); the TCB info has {known}"
            return
        identity = identities[name]
        levels = [int(each.get("tcb", {}).get("isvsvn", 0)) for each in identity.get("tcbLevels") or []]
        if levels and svn < levels[-1]:
            yield f"TDX Module SVN (TEE_TCB_SVN[0]): quote {svn}, lowest level of {name} {levels[-1]}"
        elif levels and svn < levels[0]:
            yield f"TDX Module SVN (TEE_TCB_SVN[0]): quote {svn}, newest level of {name} {levels[0]}"
    for what, member, have in (
        ("MRSIGNERSEAM", "mrsigner", body["mrsignerseam"]),
        ("SEAM attributes", "attributes", body["seamattributes"]),
    ):
        want = str(identity.get(member, "")).lower()
        mask = str(identity.get("attributesMask", "")) if member == "attributes" else ""
        yield from _masked(f"TDX Module {what}", have, want, mask, "TCB info")


def _masked(what: str, have: bytes, want: str, mask: str, whose: str) -> Iterator[str]:
    try:
        expected, bits = bytes.fromhex(want), bytes.fromhex(mask) or b"\xff" * len(have)
    except ValueError:
        return
    if len(expected) == len(have) and any((a ^ b) & m for a, b, m in zip(have, expected, bits, strict=False)):
        yield f"{what}: quote {have.hex()}, {whose} {want}" + (f" under mask {mask.lower()}" if mask else "")


def _enclave(parsed: ParsedQuote, identity: dict[str, Any]) -> Iterator[str]:
    report = parsed.bytes_of("QE report")
    signer, wanted_signer = SGX_REPORT.mrsigner.get(report), str(identity.get("mrsigner", "")).lower()
    yield from _masked("QE MRSIGNER", signer, wanted_signer, "", "QE identity")
    product, wanted = SGX_REPORT.isvprodid.get(report), identity.get("isvprodid")
    if isinstance(wanted, int) and product != wanted:
        yield f"QE ISVPRODID: quote {product}, QE identity {wanted}"
    for what, have, member in (
        ("QE attributes", SGX_REPORT.attributes.get(report), "attributes"),
        ("QE MISCSELECT", SGX_REPORT.miscselect.get(report).to_bytes(4, "big"), "miscselect"),
    ):
        want, mask = str(identity.get(member, "")).lower(), str(identity.get(f"{member}Mask", ""))
        yield from _masked(what, have, want, mask, "QE identity")
    svn = SGX_REPORT.isvsvn.get(report)
    levels = [int(each.get("tcb", {}).get("isvsvn", 0)) for each in identity.get("tcbLevels") or []]
    if levels and svn < levels[-1]:
        yield f"QE ISVSVN: quote {svn}, lowest level {levels[-1]}"
    elif levels and svn < levels[0]:
        yield f"QE ISVSVN: quote {svn}, newest level {levels[0]}"


def differences(quote: bytes, collateral: Collateral, now: int) -> list[str]:
    """Where quote and collateral do not fit together, and what is not valid at ``now`` (Unix seconds).

    Lines for people; none if nothing was found, or the quote cannot be read.
    """
    try:
        parsed = ParsedQuote(quote)
    except QuoteFormatError:
        return []
    found: list[str] = []
    info = _object(collateral.tcb_info)
    try:
        found += _unfit(parsed, info)
        found += _enclave(parsed, _object(collateral.qe_identity))
    except (TypeError, ValueError, AttributeError):
        # Collateral that is no collateral: the verifier has said so.
        pass
    found += _revoked(parsed, collateral)
    found += dates(parsed, collateral, dt.datetime.fromtimestamp(now, dt.UTC))
    return found


def _unfit(parsed: ParsedQuote, info: dict[str, Any]) -> Iterator[str]:
    platform = platform_of(parsed)
    if platform is None or not info:
        return
    facts, body = platform.facts, parsed.body()
    if info.get("id") not in (None, "TDX"):
        yield f"TCB info is for {info['id']}; a TD quote needs that for TDX"
    fits = True
    for what, have, member in (("FMSPC", facts.fmspc, "fmspc"), ("PCE-ID", facts.pceid, "pceId")):
        want = str(info.get(member, "")).lower()
        if want != have.hex():
            fits = False
            yield f"{what}: quote {have.hex()}, TCB info {want or 'none'}"
    if fits:
        yield from _levels(info, facts, body["tee_tcb_svn"])
        yield from _module(info, body)


_DOCUMENTS: Final = (("TCB info", "tcb_info"), ("QE identity", "qe_identity"))
_CHAINS: Final = (
    ("TCB info issuer chain", "tcb_info_issuer_chain"),
    ("QE identity issuer chain", "qe_identity_issuer_chain"),
    ("PCK CRL issuer chain", "pck_crl_issuer_chain"),
)
_LISTS: Final = (("root CA revocation list", "root_ca_crl"), ("PCK revocation list", "pck_crl"))


def validity(
    parsed: ParsedQuote | None, collateral: Collateral
) -> Iterator[tuple[str, dt.datetime, dt.datetime]]:
    """(what, from, until) of every document, list and certificate that can be read."""
    for name, member in _DOCUMENTS:
        document = _object(getattr(collateral, member))
        start, end = iso(document.get("issueDate")), iso(document.get("nextUpdate"))
        if start and end:
            yield name, start, end
    for name, member in _LISTS:
        try:
            crl = x509.load_der_x509_crl(getattr(collateral, member))
        except ValueError:
            continue
        if crl.next_update_utc is not None:
            yield name, crl.last_update_utc, crl.next_update_utc
    chains = [(name, chain_of(getattr(collateral, member))) for name, member in _CHAINS]
    if parsed is not None:
        chains.insert(0, ("PCK chain of the quote", chain_of(parsed.pck_chain())))
    for name, chain in chains:
        for certificate in chain:
            subject = _common_name(certificate)
            yield f"{name}: {subject}", certificate.not_valid_before_utc, certificate.not_valid_after_utc


def _revoked(parsed: ParsedQuote, collateral: Collateral) -> Iterator[str]:
    """The certificates that a list of the collateral revokes."""
    chains = [parsed.pck_chain(), *(getattr(collateral, member) for _, member in _CHAINS)]
    seen = {each.fingerprint(SHA256()): each for chain in chains for each in chain_of(chain)}
    for name, member in _LISTS:
        try:
            crl = x509.load_der_x509_crl(getattr(collateral, member))
        except ValueError:
            continue
        for certificate in seen.values():
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            if entry is not None and crl.issuer == certificate.issuer:
                yield (
                    f"{name}: revokes {_common_name(certificate)}, serial {certificate.serial_number:x}, "
                    f"since {when(entry.revocation_date_utc)}"
                )


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def dates(parsed: ParsedQuote | None, collateral: Collateral, now: dt.datetime) -> list[str]:
    """What is not valid at ``now``, with its dates."""
    found = []
    for name, start, end in validity(parsed, collateral):
        if now > end:
            found.append(f"{name}: valid until {when(end)}, verified at {when(now)}")
        elif now < start:
            found.append(f"{name}: valid from {when(start)}, verified at {when(now)}")
    return found

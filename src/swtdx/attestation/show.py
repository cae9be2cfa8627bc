"""What an attestation file says, without verifying any of it.

A quote, a TDREPORT, certificates, collateral or one of its documents, a revocation list: recognised by what
is in it, whatever text form it is written in.  Everything here is a claim of the file's author.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from cryptography import x509

from swtdx.arch.published_modules import by_mrseam
from swtdx.arch.report_structs import (
    REPORTMACSTRUCT,
    REPORTTYPE,
    TDINFO,
    TEE_TCB_INFO,
    TEE_TCB_INFO_VALID_PRESERVING,
)

from .collateral import Collateral
from .differences import platform_of, validity, when
from .errors import AttestationError
from .kinds import Kind, given, kind_of
from .pck import chain_of, pck_facts
from .quote import BODIES, HEADER, SGX_REPORT, ParsedQuote, td_body
from .quote import BodyType as Body
from .report import certificate_lines, grouped, line, module_lines, platform_lines, td_lines
from .tdreport import TDINFO_OFFSET, TEE_TCB_INFO_OFFSET
from .textforms import decode

UNVERIFIED: Final = "UNVERIFIED: nothing below was checked; it is what the file claims."


@dataclass(frozen=True)
class Shown:
    """A file taken apart: what it is, lines for people, and the same as plain data."""

    kind: Kind
    lines: tuple[str, ...]
    document: dict[str, Any]

    def text(self) -> str:
        """The lines with what it is, and that it is unverified, above them."""
        return "\n".join([f"{self.kind}", UNVERIFIED, *self.lines])


def show(data: bytes) -> Shown:
    """Take apart whatever ``data`` is.

    Raises:
        AttestationError: it is nothing that is known here; says what that is.
    """
    inner, form = given(data)
    kind = kind_of(inner)
    written = [] if form in ("", "binary") else [line("written as", form)]
    if kind is Kind.TDREPORT:
        return _report(inner, written)
    if kind is Kind.SGX_QUOTE:
        return _sgx_quote(inner, written)
    if kind is Kind.QUOTE:
        return _quote(inner, written)
    for attempt in (_json, _certificates, _revocations):
        shown = attempt(data)
        if shown is not None:
            return shown
    raise AttestationError(
        f"{len(data)} bytes that are not a quote, TDREPORT, certificate, revocation list, collateral or "
        "event log"
    )


def _hexed(body: dict[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in body.items()}


def _quote(data: bytes, written: list[str]) -> Shown:
    parsed = ParsedQuote(data)
    body = parsed.body()
    header = parsed.data[: HEADER.size]
    report = parsed.bytes_of("QE report")
    chain = chain_of(parsed.pck_chain())
    lines = [
        *written,
        "",
        "Quote",
        line("version, body", f"{parsed.version}, {parsed.body_type.label}"),
        line(
            "bytes",
            f"{len(data) - parsed.padding}" + (f" and {parsed.padding} of padding" if parsed.padding else ""),
        ),
        line("QE vendor", HEADER.qe_vendor_id.get(header).hex()),
        line("user data", HEADER.user_data.get(header).hex()),
        "",
        "TD",
        *td_lines(body),
        "",
        "TDX module",
        *module_lines(body),
        "",
        "Platform",
        *platform_lines(parsed),
        "",
        "Quoting enclave",
        line("MRSIGNER", SGX_REPORT.mrsigner.get(report).hex()),
        line("MRENCLAVE", SGX_REPORT.mrenclave.get(report).hex()),
        line("ISVPRODID, SVN", f"{SGX_REPORT.isvprodid.get(report)}, {SGX_REPORT.isvsvn.get(report)}"),
        line("attributes", SGX_REPORT.attributes.get(report).hex()),
        "",
        "Certificate chain",
        *certificate_lines(chain),
    ]
    platform = platform_of(parsed)
    known = by_mrseam(body["mrseam"].hex())
    document = {
        "kind": str(Kind.QUOTE),
        "verified": False,
        "version": parsed.version,
        "body": parsed.body_type.label,
        "td": _hexed(body),
        "module_version": known.version if known else None,
        "platform": _facts(platform.facts) if platform else None,
        "qe": {
            "mrsigner": SGX_REPORT.mrsigner.get(report).hex(),
            "mrenclave": SGX_REPORT.mrenclave.get(report).hex(),
            "isvprodid": SGX_REPORT.isvprodid.get(report),
            "isvsvn": SGX_REPORT.isvsvn.get(report),
        },
        "certificates": _certificate_documents(chain),
    }
    return Shown(Kind.QUOTE, tuple(lines), document)


def _facts(facts: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for each in fields(facts):
        value = getattr(facts, each.name)
        out[each.name] = value.hex() if isinstance(value, bytes) else value
    return out


def _sgx_quote(data: bytes, written: list[str]) -> Shown:
    version = HEADER.version.get(data)
    start = HEADER.size + (6 if version == 5 else 0)
    report = data[start : start + SGX_REPORT.size]
    if len(report) < SGX_REPORT.size:
        raise AttestationError(f"an SGX quote of {len(data)} bytes ends in its report")
    values = {
        "MRENCLAVE": SGX_REPORT.mrenclave.get(report).hex(),
        "MRSIGNER": SGX_REPORT.mrsigner.get(report).hex(),
        "ISVPRODID": str(SGX_REPORT.isvprodid.get(report)),
        "ISVSVN": str(SGX_REPORT.isvsvn.get(report)),
        "REPORTDATA": SGX_REPORT.reportdata.get(report).hex(),
    }
    lines = [*written, line("version", str(version)), *(line(name, value) for name, value in values.items())]
    document = {"kind": str(Kind.SGX_QUOTE), "verified": False, "version": version} | values
    return Shown(Kind.SGX_QUOTE, tuple(lines), document)


def _report(data: bytes, written: list[str]) -> Shown:
    tcb = TEE_TCB_INFO_OFFSET
    version = REPORTTYPE.version.get(data)
    content = td_body(data, Body.TD_1_5)
    body = {
        name: content[member.offset : member.offset + member.span]
        for name, member in BODIES[Body.TD_1_5].fields.items()
    }
    if TEE_TCB_INFO.valid.get(data, tcb) != TEE_TCB_INFO_VALID_PRESERVING:
        del body["tee_tcb_svn2"]
    if not any(TDINFO.servtd_hash.get(data, TDINFO_OFFSET)):
        del body["mrservicetd"]
    cpusvn, mac = REPORTMACSTRUCT.cpusvn.get(data), REPORTMACSTRUCT.mac.get(data)
    lines = [
        "Only the machine that made a TDREPORT can check it (its MAC); a quote is made of it for others.",
        *written,
        "",
        line("version", str(version)),
        line("CPUSVN", cpusvn.hex()),
        line("MAC", grouped(mac)),
        "",
        "TD",
        *td_lines(body),
        "",
        "TDX module",
        *module_lines(body),
    ]
    known = by_mrseam(body["mrseam"].hex())
    document = {
        "kind": str(Kind.TDREPORT),
        "verified": False,
        "version": version,
        "cpusvn": cpusvn.hex(),
        "td": _hexed(body),
        "module_version": known.version if known else None,
    }
    return Shown(Kind.TDREPORT, tuple(lines), document)


def _certificate_documents(chain: Sequence[x509.Certificate]) -> list[dict[str, Any]]:
    return [
        {
            "subject": each.subject.rfc4514_string(),
            "issuer": each.issuer.rfc4514_string(),
            "serial": f"{each.serial_number:x}",
            "not_before": when(each.not_valid_before_utc),
            "not_after": when(each.not_valid_after_utc),
        }
        for each in chain
    ]


def _certificates(data: bytes) -> Shown | None:
    start = data.find(b"-----BEGIN CERTIFICATE-----")
    chain = chain_of(data[start:].rstrip(b"\0")) if start >= 0 else []
    if not chain:
        try:
            chain = [x509.load_der_x509_certificate(data)]
        except ValueError:
            return None
    lines = ["", *certificate_lines(chain)]
    document: dict[str, Any] = {
        "kind": str(Kind.CERTIFICATES),
        "verified": False,
        "certificates": _certificate_documents(chain),
    }
    for certificate in chain:
        facts = pck_facts(certificate)
        if facts is not None:
            document["platform"] = _facts(facts)
            lines += ["", "Platform"]
            lines += [
                line(name, "" if value is None else str(value)) for name, value in _facts(facts).items()
            ]
    return Shown(Kind.CERTIFICATES, tuple(lines), document)


def _revocations(data: bytes) -> Shown | None:
    crl = _crl(data)
    if crl is None:
        return None
    lines, document = _crl_parts(crl)
    return Shown(Kind.CRL, ("", *lines), {"kind": str(Kind.CRL), "verified": False} | document)


def _crl(data: bytes) -> x509.CertificateRevocationList | None:
    found = decode(data, lambda each: each[:1] == b"\x30" and _load_crl(each) is not None)
    if found is not None:
        return _load_crl(found[0])
    return _load_crl(data)


def _load_crl(data: bytes) -> x509.CertificateRevocationList | None:
    try:
        if b"-----BEGIN X509 CRL-----" in data:
            return x509.load_pem_x509_crl(data[data.index(b"-----BEGIN") :])
        return x509.load_der_x509_crl(data)
    except ValueError:
        return None


def _crl_parts(crl: x509.CertificateRevocationList) -> tuple[list[str], dict[str, Any]]:
    end = when(crl.next_update_utc) if crl.next_update_utc else "no end"
    serials = [f"{each.serial_number:x}" for each in crl]
    lines = [
        line("issuer", crl.issuer.rfc4514_string()),
        line("valid", f"{when(crl.last_update_utc)} to {end}"),
        line("revoked", " ".join(serials) or "nothing"),
    ]
    return lines, {"issuer": crl.issuer.rfc4514_string(), "until": end, "revoked": serials}


def _json(data: bytes) -> Shown | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    if "tcb_info" in document and "qe_identity" in document:
        return _collateral(Collateral.from_json(data))
    for member, kind in (("tcbInfo", Kind.TCB_INFO), ("enclaveIdentity", Kind.IDENTITY)):
        if isinstance(document.get(member), dict):
            return _document(kind, document[member])
    if "tcbLevels" in document:
        return _document(Kind.TCB_INFO if "fmspc" in document else Kind.IDENTITY, document)
    return None


def _document(kind: Kind, content: dict[str, Any]) -> Shown:
    lines = _tcb_lines(content) if kind is Kind.TCB_INFO else _identity_lines(content)
    return Shown(kind, ("", *lines), {"kind": str(kind), "verified": False, "content": content})


def _tcb_lines(info: dict[str, Any]) -> list[str]:
    lines = [
        line("for", str(info.get("id", "SGX"))),
        line("FMSPC", str(info.get("fmspc", "")).lower()),
        line("PCE-ID", str(info.get("pceId", "")).lower()),
        line("issued", f"{info.get('issueDate')}, next update {info.get('nextUpdate')}"),
        line("evaluation", str(info.get("tcbEvaluationDataNumber"))),
    ]
    for identity in info.get("tdxModuleIdentities") or []:
        levels = ", ".join(
            f"{each.get('tcb', {}).get('isvsvn')} {each.get('tcbStatus')}"
            for each in identity.get("tcbLevels") or []
        )
        lines.append(line(f"module {identity.get('id')}", f"SVN levels: {levels}"))
    lines.append("  levels, newest first (SGX components; PCESVN; TDX components)")
    for level in info.get("tcbLevels") or []:
        tcb = level.get("tcb", {})
        parts = [
            " ".join(str(each.get("svn")) for each in tcb.get("sgxtcbcomponents", [])),
            str(tcb.get("pcesvn")),
            " ".join(str(each.get("svn")) for each in tcb.get("tdxtcbcomponents", [])),
        ]
        advisories = " ".join(level.get("advisoryIDs", []))
        name = f"{str(level.get('tcbDate'))[:10]} {level.get('tcbStatus')}"
        lines.append(f"    {name}: {'; '.join(parts)} {advisories}".rstrip())
    return lines


def _identity_lines(identity: dict[str, Any]) -> list[str]:
    lines = [
        line("for", str(identity.get("id", ""))),
        line("issued", f"{identity.get('issueDate')}, next update {identity.get('nextUpdate')}"),
        line("evaluation", str(identity.get("tcbEvaluationDataNumber"))),
        line("MRSIGNER", str(identity.get("mrsigner", "")).lower()),
        line("ISVPRODID", str(identity.get("isvprodid"))),
    ]
    for level in identity.get("tcbLevels") or []:
        svn = level.get("tcb", {}).get("isvsvn")
        lines.append(line(f"ISVSVN {svn}", f"{level.get('tcbStatus')}, {str(level.get('tcbDate'))[:10]}"))
    return lines


def _collateral(collateral: Collateral) -> Shown:
    lines: list[str] = []
    document: dict[str, Any] = {"kind": str(Kind.COLLATERAL), "verified": False}
    for name, text, render in (
        ("TCB info", collateral.tcb_info, _tcb_lines),
        ("QE identity", collateral.qe_identity, _identity_lines),
    ):
        try:
            content = json.loads(text)
            lines += ["", name, *render(content)]
        except (ValueError, AttributeError, TypeError):
            lines += ["", name, "  cannot be read"]
            content = None
        document[name.lower().replace(" ", "_")] = content
    for name, data in (
        ("Root CA revocation list", collateral.root_ca_crl),
        ("PCK revocation list", collateral.pck_crl),
    ):
        crl = _load_crl(data)
        if crl is not None:
            parts, found = _crl_parts(crl)
            lines += ["", name, *parts]
            document[name.lower().replace(" ", "_")] = found
    lines += ["", "Validity"]
    dates = list(validity(None, collateral))
    lines += [f"  {start:%Y-%m-%d} to {end:%Y-%m-%d}  {name}" for name, start, end in dates]
    document["validity"] = [
        {"what": name, "from": when(start), "until": when(end)} for name, start, end in dates
    ]
    return Shown(Kind.COLLATERAL, tuple(lines), document)

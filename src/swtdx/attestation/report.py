"""A verdict as text for people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from cryptography import x509

from swtdx.arch.published_modules import by_mrseam
from swtdx.arch.td_config import ATTRIBUTES, XFAM

from .differences import platform_of
from .names import is_simulated
from .pck import SGX_TYPES
from .quote import ParsedQuote
from .verify import Verdict

_MEASUREMENTS = (
    ("mrtd", "MRTD"),
    ("rtmr0", "RTMR0"),
    ("rtmr1", "RTMR1"),
    ("rtmr2", "RTMR2"),
    ("rtmr3", "RTMR3"),
    ("mrconfigid", "MRCONFIGID"),
    ("mrowner", "MROWNER"),
    ("mrownerconfig", "MROWNERCONFIG"),
    ("mrservicetd", "MRSERVICETD"),
    ("reportdata", "REPORTDATA"),
)


def attribute_names(value: int) -> str:
    """The set bits of TD ATTRIBUTES by name, those without a name by number."""
    return " ".join(name.replace(" ", "") for name in ATTRIBUTES(value).names()) or "none"


def grouped(value: bytes) -> str:
    """A measurement in groups of four bytes, "zero" for one of zeros."""
    if not any(value):
        return "zero"
    # Half a measurement to a line, in groups of four bytes, is what eyes can compare.
    text = value.hex()
    groups = [text[i : i + 8] for i in range(0, len(text), 8)]
    half = (len(groups) + 1) // 2 if len(groups) > 6 else len(groups)
    return " ".join(groups[:half]) + ("\n" + " " * 18 + " ".join(groups[half:]) if len(groups) > half else "")


def line(label: str, value: str) -> str:
    """A line of a report."""
    return f"  {label:<15} {value}"


def td_lines(body: Mapping[str, bytes]) -> list[str]:
    """What a quote's body, or a TDREPORT, says about the TD: attributes and measurements, by the names of
    a quote's fields."""
    attributes = int.from_bytes(body["tdattributes"], "little")
    xfam = int.from_bytes(body["xfam"], "little")
    return [
        line("attributes", f"{attributes:#018x} {attribute_names(attributes)}"),
        line("XFAM", f"{xfam:#x} {' '.join(XFAM(xfam).names())}".rstrip()),
        *(line(label, grouped(body[name])) for name, label in _MEASUREMENTS if name in body),
    ]


def module_lines(body: Mapping[str, bytes]) -> list[str]:
    """What it says about the TDX Module, and which published one that is."""
    lines = [line("TEE_TCB_SVN", svn_text(body["tee_tcb_svn"]))]
    if "tee_tcb_svn2" in body:
        lines.append(line("TEE_TCB_SVN2", svn_text(body["tee_tcb_svn2"])))
    lines.append(line("MRSEAM", grouped(body["mrseam"])))
    known = by_mrseam(body["mrseam"].hex())
    lines.append(line("version", known.version if known else "not one whose MRSEAM is known here"))
    lines.append(line("MRSIGNERSEAM", grouped(body["mrsignerseam"])))
    return lines


def svn_text(svn: bytes) -> str:
    """TEE_TCB_SVN in hex, and what its first bytes are."""
    return f"{svn.hex()} (module: SVN {svn[0]}, major version {svn[1]}; last patch SVN {svn[2]})"


def platform_lines(parsed: ParsedQuote) -> list[str]:
    """The platform as the quote's PCK certificate names it, and the dates of its chain; unverified."""
    platform = platform_of(parsed)
    if platform is None:
        kind = parsed.certification_type
        return [
            line("PCK", f"the quote carries no readable PCK certificate (certification data type {kind})")
        ]
    facts = platform.facts
    lines = [
        line("FMSPC", facts.fmspc.hex()),
        line("CPUSVN", facts.cpusvn.hex()),
        line("SGX components", " ".join(str(svn) for svn in facts.components)),
        line("PCESVN, PCE-ID", f"{facts.pcesvn}, {facts.pceid.hex()}"),
        line("PPID", facts.ppid.hex()),
    ]
    if facts.sgx_type is not None:
        lines.append(line("SGX type", f"{facts.sgx_type} ({SGX_TYPES.get(facts.sgx_type, 'unknown')})"))
    if facts.instance_id:
        lines.append(line("instance id", facts.instance_id.hex()))
    flags = {
        "dynamic platform": facts.dynamic_platform,
        "cached keys": facts.cached_keys,
        "SMT": facts.smt_enabled,
    }
    told = ", ".join(f"{name} {'yes' if on else 'no'}" for name, on in flags.items() if on is not None)
    if told:
        lines.append(line("configuration", told))
    lines.append(line("PCK issuer", platform.issuer))
    return lines


def certificate_lines(chain: Sequence[x509.Certificate]) -> list[str]:
    """Each certificate's subject, issuer, serial number and dates."""
    lines = []
    for certificate in chain:
        simulated = " (SIMULATED by swtdx)" if is_simulated(certificate) else ""
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        lines += [
            f"  {certificate.subject.rfc4514_string()}{simulated}",
            f"    issuer {certificate.issuer.rfc4514_string()}",
            f"    serial {certificate.serial_number:x}, valid {start:%Y-%m-%d} to {end:%Y-%m-%d}",
        ]
    return lines


def render(verdict: Verdict) -> str:
    """The report: verdict first, then what was verified, or as much of it as can be read."""
    lines = ["ACCEPTED" if verdict.accepted else f"REJECTED by the check of the {verdict.check}"]
    if not verdict.accepted:
        lines.append(f"  {verdict.reason}")
    lines += [f"  {each}" for each in verdict.differences]
    if verdict.policy_key:
        lines.append(f"  A policy that accepts it has: {verdict.policy_key}")
    if verdict.simulated:
        lines.append("  The root of trust is SIMULATED by swtdx: this says nothing about hardware.")
    at = dt.datetime.fromtimestamp(verdict.now, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines += ["", line("verified at", at), line("policy", verdict.policy.name)]
    if verdict.claims:
        document = verdict.document()
        tcb, platform = document["tcb"], document["platform"]
        lines += [
            "",
            "TCB",
            line("status", tcb["status"]),
            line("platform", tcb["platform_status"]),
        ]
        if tcb["current_status"]:
            lines.append(line("platform now", tcb["current_status"]))
        lines += [
            line("quoting enclave", tcb["qe_status"]),
            line("advisories", " ".join(tcb["advisories"]) or "none"),
            line("FMSPC", platform["fmspc"]),
            line("CPUSVN, PCESVN", f"{platform['cpu_svn']}, {platform['pce_svn']}"),
            line(
                "collateral until",
                dt.datetime.fromtimestamp(document["collateral_expires"], dt.UTC).strftime("%Y-%m-%d"),
            ),
        ]
    parsed = verdict.parsed
    if parsed is None:
        return "\n".join([*lines, "", "The bytes are not a TD quote; nothing more can be read from them."])
    body = parsed.body()
    doubt = "" if verdict.authentic else "; UNVERIFIED, as the quote claims it"
    if not verdict.claims:
        lines += ["", f"Platform{doubt}", *platform_lines(parsed)]
    lines += ["", f"TD (quote version {parsed.version}, body {parsed.body_type.label}){doubt}"]
    lines += [*td_lines(body), "", "TDX module", *module_lines(body)]
    return "\n".join(lines)

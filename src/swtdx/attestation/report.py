"""A verdict as text for people."""

from __future__ import annotations

import datetime as dt

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

# Bits of the TD's ATTRIBUTES that have names (TDX module ABI, TD_PARAMS.ATTRIBUTES).
_ATTRIBUTES = {
    0: "DEBUG",
    16: "ICSSD",
    17: "SERVTD_EXT",
    27: "LASS",
    28: "SEPT_VE_DISABLE",
    29: "MIGRATABLE",
    30: "PKS",
    31: "KL",
    62: "TPA",
    63: "PERFMON",
}


def attribute_names(value: int) -> str:
    """The set bits of TD ATTRIBUTES by name, those without a name by number."""
    bits = [bit for bit in range(64) if value >> bit & 1]
    return " ".join(_ATTRIBUTES.get(bit, f"bit{bit}") for bit in bits) or "none"


def _grouped(value: bytes) -> str:
    if not any(value):
        return "zero"
    # Half a measurement to a line, in groups of four bytes, is what eyes can compare.
    text = value.hex()
    groups = [text[i : i + 8] for i in range(0, len(text), 8)]
    half = (len(groups) + 1) // 2 if len(groups) > 6 else len(groups)
    return " ".join(groups[:half]) + ("\n" + " " * 18 + " ".join(groups[half:]) if len(groups) > half else "")


def _line(label: str, value: str) -> str:
    return f"  {label:<15} {value}"


def render(verdict: Verdict) -> str:
    """The report: verdict first, then what was verified, or as much of it as can be read."""
    lines = ["ACCEPTED" if verdict.accepted else f"REJECTED by the check of the {verdict.check}"]
    if not verdict.accepted:
        lines.append(f"  {verdict.reason}")
    if verdict.simulated:
        lines.append("  The root of trust is SIMULATED by swtdx: this says nothing about hardware.")
    at = dt.datetime.fromtimestamp(verdict.now, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines += ["", _line("verified at", at), _line("policy", verdict.policy.name)]
    if verdict.claims:
        document = verdict.document()
        tcb, platform = document["tcb"], document["platform"]
        lines += [
            "",
            "TCB",
            _line("status", tcb["status"]),
            _line("platform", tcb["platform_status"]),
        ]
        if tcb["current_status"]:
            lines.append(_line("platform now", tcb["current_status"]))
        lines += [
            _line("quoting enclave", tcb["qe_status"]),
            _line("advisories", " ".join(tcb["advisories"]) or "none"),
            _line("FMSPC", platform["fmspc"]),
            _line("CPUSVN, PCESVN", f"{platform['cpu_svn']}, {platform['pce_svn']}"),
            _line(
                "collateral until",
                dt.datetime.fromtimestamp(document["collateral_expires"], dt.UTC).strftime("%Y-%m-%d"),
            ),
        ]
    parsed = verdict.parsed
    if parsed is None:
        return "\n".join([*lines, "", "The bytes are no TD quote; nothing more can be read from them."])
    body = parsed.body()
    doubt = "" if verdict.authentic else "; UNVERIFIED, as the quote claims it"
    lines += ["", f"TD (quote version {parsed.version}, body {parsed.body_type.label}){doubt}"]
    attributes = int.from_bytes(body["tdattributes"], "little")
    lines += [
        _line("attributes", f"{attributes:#018x} {attribute_names(attributes)}"),
        _line("XFAM", f"{int.from_bytes(body['xfam'], 'little'):#x}"),
    ]
    lines += [_line(label, _grouped(body[name])) for name, label in _MEASUREMENTS if name in body]
    lines += ["", "TDX module", _line("TEE_TCB_SVN", body["tee_tcb_svn"].hex())]
    if "tee_tcb_svn2" in body:
        lines.append(_line("TEE_TCB_SVN2", body["tee_tcb_svn2"].hex()))
    lines += [
        _line("MRSEAM", _grouped(body["mrseam"])),
        _line("MRSIGNERSEAM", _grouped(body["mrsignerseam"])),
    ]
    return "\n".join(lines)

"""Names and constants of Linux, KVM, QEMU and edk2 that differ from Intel's.

Sources: Linux ``arch/x86/include/asm/shared/tdx_errno.h`` and ``shared/tdx.h``, ``asm/tdx.h``,
``drivers/virt/coco/tdx-guest``, and the patch series of KVM before 6.16 (``arch/x86/kvm/vmx/tdx_errno.h``);
edk2 ``IndustryStandard/Tdx.h``; QEMU ``target/i386/kvm/tdx.h``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from swtdx.arch import ghci, status

_ERRNO: Final = "arch/x86/include/asm/shared/tdx_errno.h"
_SERIES: Final = "arch/x86/kvm/vmx/tdx_errno.h of the KVM series before Linux 6.16"


@dataclass(frozen=True, slots=True)
class Variant:
    """A status that Linux gives another value than Intel's module returns."""

    value: int
    name: str
    where: str
    intel: int


#: By Linux's value.
VARIANTS: Final[dict[int, Variant]] = {
    each.value: each
    for each in (
        Variant(0x4000000200000000, "TDX_NON_RECOVERABLE_TD", _ERRNO, status.TDX_NON_RECOVERABLE_TD),
        Variant(
            0x6000000700000000,
            "TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE",
            _ERRNO,
            status.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
        ),
        Variant(
            0x4000000500000000,
            "TDX_NON_RECOVERABLE_TD_FATAL",
            _SERIES,
            status.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
        ),
        Variant(
            0xC000000700000000,
            "TDX_NON_RECOVERABLE_TD_NO_APIC",
            _SERIES,
            status.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
        ),
    )
}

#: Names that no rule below turns into ours: (kind, our name).
_ALIASES: Final[dict[str, tuple[str, str]]] = {
    "TDX_GET_INFO": ("leaf", "TDG.VP.INFO"),
    "TDX_GET_VEINFO": ("leaf", "TDG.VP.VEINFO.GET"),
    "TDX_GET_REPORT": ("leaf", "TDG.MR.REPORT"),
    "TDX_ACCEPT_PAGE": ("leaf", "TDG.MEM.PAGE.ACCEPT"),
    "TDX_WR": ("leaf", "TDG.VM.WR"),
    "TDCALL_TDVMCALL": ("leaf", "TDG.VP.VMCALL"),
    "TDCALL_TDINFO": ("leaf", "TDG.VP.INFO"),
    "TDCALL_TDEXTENDRTMR": ("leaf", "TDG.MR.RTMR.EXTEND"),
    "TDCALL_TDGETVEINFO": ("leaf", "TDG.VP.VEINFO.GET"),
    "TDCALL_TDREPORT": ("leaf", "TDG.MR.REPORT"),
    "TDCALL_TDSETCPUIDVE": ("leaf", "TDG.VP.CPUIDVE.SET"),
    "TDCALL_TDACCEPTPAGE": ("leaf", "TDG.MEM.PAGE.ACCEPT"),
    "TDX_OPERAND_ID_SEPT": ("operand", "SEPT_TREE"),
    "TDX_SEAMCALL_VMFAILINVALID": ("status", "SW_VMFAILINVALID"),
    "TDX_SEAMCALL_GP": ("status", "SW_GP"),
    "TDX_SEAMCALL_UD": ("status", "SW_UD"),
    "TDX_SW_ERROR": ("status", "SW_ERROR"),
    "EXIT_REASON_MSR_READ": ("exit", "RDMSR"),
    "EXIT_REASON_MSR_WRITE": ("exit", "WRMSR"),
    "EXIT_REASON_EPT_MISCONFIG": ("exit", "EPT_MISCONFIGURATION"),
    "EXIT_REASON_MONITOR_INSTRUCTION": ("exit", "MONITOR"),
    "EXIT_REASON_MWAIT_INSTRUCTION": ("exit", "MWAIT"),
    "EXIT_REASON_PAUSE_INSTRUCTION": ("exit", "PAUSE"),
    "EXIT_REASON_EXCEPTION_NMI": ("exit", "EXCEPTION_OR_NMI"),
    "EXIT_REASON_INIT_SIGNAL": ("exit", "INIT"),
    "EXIT_REASON_SIPI_SIGNAL": ("exit", "SIPI"),
    "MSR_EFER": ("msr", "IA32_EFER"),
    "GET_QUOTE_SUCCESS": ("quote", "SUCCESS"),
    "GET_QUOTE_IN_FLIGHT": ("quote", "IN_FLIGHT"),
    "GET_QUOTE_ERROR": ("quote", "ERROR"),
    "GET_QUOTE_SERVICE_UNAVAILABLE": ("quote", "SERVICE_UNAVAILABLE"),
}

#: Prefixes that stand before our own name of a thing of this kind.
_PREFIXES: Final = (
    ("TDVMCALL_STATUS_", "callstatus"),
    ("TDG_VP_VMCALL_", "callstatus"),
    ("TDVMCALL_", "tdvmcall"),
    ("TDG_VP_VMCALL_", "tdvmcall"),
    ("SEAMCALL_", "leaf"),
    ("TDX_OPERAND_ID_", "operand"),
    ("EXIT_REASON_", "exit"),
    ("MSR_", "msr"),
    ("MD_FIELD_ID_", "field"),
    ("TDCS_", "field"),
)
_STATUS_BY_NAME: Final = {name: value for value, name in ghci.STATUS_NAMES.items()}
_CALLS: Final = {re.sub("[^a-z0-9]", "", call.name.lower()): call.name for call in ghci.CALLS.values()}


def translate(text: str) -> list[tuple[str, str]]:
    """What a name of theirs is here: (kind, our name) for each thing that it can be.

    Kind ``callstatus`` is a status in R10 after a TDVMCALL, ``quote`` one in the header of a GetQuote
    buffer.  The GHCI's own way to write a sub-function, ``TDG.VP.VMCALL<MapGPA>``, is known, too.
    """
    bracketed = re.fullmatch(r"TDG[._]VP[._]VMCALL\s*<\s*([^<>]+?)\s*>", text.strip(), re.IGNORECASE)
    if bracketed:
        return [("tdvmcall", name) for name in [_call(bracketed[1])] if name]
    name = text.strip().upper().replace(".", "_")
    found = [_ALIASES[name]] if name in _ALIASES else []
    for prefix, kind in _PREFIXES:
        rest = name.removeprefix(prefix)
        if rest == name or not rest:
            continue
        if kind == "tdvmcall":
            call = _call(rest)
            found += [(kind, call)] if call else []
        elif kind == "callstatus":
            found += [(kind, rest)] if rest in _STATUS_BY_NAME else []
        else:
            found.append((kind, rest))
    return found


def _call(text: str) -> str | None:
    letters = re.sub("[^a-z0-9]", "", text.lower())
    return _CALLS.get(letters) or _CALLS.get("instruction" + letters)


def names() -> list[str]:
    """The names that people may mistype."""
    calls = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call.name).upper() for call in ghci.CALLS.values()]
    return [
        *_ALIASES,
        *(f"TDVMCALL_{name}" for name in calls if "." not in name),
        *(f"TDVMCALL_STATUS_{name}" for name in _STATUS_BY_NAME),
    ]

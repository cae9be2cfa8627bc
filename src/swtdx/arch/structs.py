"""Every declared structure of the ABI in one place, by name.

The layouts live in :mod:`~swtdx.arch.platform_structs`, :mod:`~swtdx.arch.control_structs`,
:mod:`~swtdx.arch.report_structs`, :mod:`~swtdx.arch.seam_structs` and
:mod:`~swtdx.arch.migration_structs`; this module gathers them.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.control_structs import PAMT_ENTRY, TDCS, TDR, TDVPS, VE_INFO
from swtdx.arch.layout import Layout
from swtdx.arch.migration_structs import MBMD
from swtdx.arch.platform_structs import (
    CMR_INFO,
    CPUID_CONFIG,
    MKTME_KEY_PROGRAM,
    PID,
    TD_PARAMS,
    TDMR_INFO,
    TDSYSINFO_STRUCT,
)
from swtdx.arch.report_structs import (
    REPORTMACSTRUCT,
    REPORTTYPE,
    SERVTD_BINDING,
    TDINFO,
    TDREPORT,
    TEE_TCB_INFO,
)
from swtdx.arch.seam_structs import (
    HANDOFF_DATA_HEADER,
    P_SYS_INFO_TABLE,
    SEAM_SIGSTRUCT,
    SEAMEXTEND,
    SEAMLDR_INFO,
    SEAMLDR_PARAMS,
    SYS_INFO_TABLE,
)

__all__ = [
    "ALL", "CMR_INFO", "CPUID_CONFIG", "HANDOFF_DATA_HEADER", "MBMD", "MKTME_KEY_PROGRAM",
    "PAMT_ENTRY", "PID", "P_SYS_INFO_TABLE", "REPORTMACSTRUCT", "REPORTTYPE", "SEAMEXTEND",
    "SEAMLDR_INFO", "SEAMLDR_PARAMS", "SEAM_SIGSTRUCT", "SERVTD_BINDING", "SYS_INFO_TABLE", "TDCS",
    "TDINFO", "TDMR_INFO", "TDR", "TDREPORT", "TDSYSINFO_STRUCT", "TDVPS", "TD_PARAMS",
    "TEE_TCB_INFO", "VE_INFO",
]  # fmt: skip

#: Every layout by its name.
ALL: Final[dict[str, Layout]] = {
    value.name: value for value in tuple(globals().values()) if isinstance(value, Layout)
}

"""What TDG.MR.REPORT returns, and what a service TD binding keeps.

Sources: include/tdx_api_defs.h of the TDX module 1.5.01 and structures.md §9.  Offsets and sizes in
bytes; hashes are SHA-384 (48 bytes).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.layout import Blob, Field, Struct
from swtdx.arch.states import ServiceTdBinding
from swtdx.arch.td_config import ATTRIBUTES, XFAM

REPORTDATA_BYTES: Final = 64
HASH_BYTES: Final = 48
NUM_RTMRS: Final = 4

TEE_TYPE_SGX: Final = 0x00
TEE_TYPE_TDX: Final = 0x81
#: REPORTTYPE.version: without, and with, bound service TDs.
REPORT_VERSION_BASE: Final = 0
REPORT_VERSION_SERVTD: Final = 1


class REPORTTYPE(Struct, size=4, source="tdx_api_defs.h"):
    type_ = Field(0, 1)
    subtype = Field(1, 1)
    version = Field(2, 1)
    reserved = Blob(3, 1, reserved=True)


class REPORTMACSTRUCT(Struct, size=256, source="tdx_api_defs.h"):
    """The part of a report that the processor authenticates."""

    report_type = Field(0, 4, "REPORTTYPE")
    reserved_0 = Blob(4, 12, reserved=True)
    cpusvn = Blob(16, 16)
    tee_tcb_info_hash = Blob(32, 48, "SHA-384 of TEE_TCB_INFO, 239 bytes")
    tee_info_hash = Blob(80, 48, "SHA-384 of TDINFO, 512 bytes")
    report_data = Blob(128, 64)
    reserved_1 = Blob(192, 32, reserved=True)
    mac = Blob(224, 32, "HMAC-SHA256 over bytes 0..223")


#: Bytes of REPORTMACSTRUCT that its MAC covers.
REPORT_MAC_COVERS: Final = 224


class TEE_TCB_INFO(Struct, size=239, source="structures.md §9"):
    """Identity of the TDX Module, from the SEAMEXTEND register."""

    valid = Field(0, 8, "bit i: the field at offset 8*i is there")
    tee_tcb_svn = Blob(8, 16)
    mrseam = Blob(24, 48)
    mrsignerseam = Blob(72, 48, "zero for a module signed by Intel")
    attributes = Field(120, 8)
    tee_tcb_svn2 = Blob(128, 16)
    reserved = Blob(144, 95, reserved=True)


TEE_TCB_INFO_VALID_BASE: Final = 0x1FF
TEE_TCB_INFO_VALID_PRESERVING: Final = 0x301FF


class TDINFO(Struct, size=512, source="tdx_api_defs.h"):
    """A TD's attestable properties."""

    attributes = Field(0, 8, holds=ATTRIBUTES)
    xfam = Field(8, 8, holds=XFAM)
    mrtd = Blob(16, 48)
    mrconfigid = Blob(64, 48)
    mrowner = Blob(112, 48)
    mrownerconfig = Blob(160, 48)
    rtmr0 = Blob(208, 48)
    rtmr1 = Blob(256, 48)
    rtmr2 = Blob(304, 48)
    rtmr3 = Blob(352, 48)
    servtd_hash = Blob(400, 48)
    reserved = Blob(448, 64, reserved=True)


class TDREPORT(Struct, size=1024, source="tdx_api_defs.h"):
    """Output of TDG.MR.REPORT, aligned to 1024 bytes."""

    report_mac = Blob(0, REPORTMACSTRUCT.size, "REPORTMACSTRUCT")
    tee_tcb_info = Blob(256, TEE_TCB_INFO.size, "TEE_TCB_INFO")
    reserved = Blob(495, 17, reserved=True)
    td_info = Blob(512, TDINFO.size, "TDINFO")


TDREPORT_ALIGNMENT: Final = 1024
REPORTDATA_ALIGNMENT: Final = 64

#: Bits of SERVTD_ATTR[47:32]: the TDINFO field that the binding's hash leaves out.
SERVTD_IGNORE_FIELDS: Final = (
    "attributes", "xfam", "mrtd", "mrconfigid", "mrowner", "mrownerconfig",
    "rtmr0", "rtmr1", "rtmr2", "rtmr3", "servtd_hash",
)  # fmt: skip


class SERVTD_BINDING(Struct, size=128, source="td_control_structures.h"):
    """One slot of TDCS.SERVTD_BINDINGS_TABLE."""

    state = Field(0, 1, holds=ServiceTdBinding)
    reserved_0 = Blob(1, 1, reserved=True)
    type_ = Field(2, 2)
    reserved_1 = Blob(4, 4, reserved=True)
    attributes = Field(8, 8)
    uuid = Blob(16, 32)
    info_hash = Blob(48, 48)
    reserved_2 = Blob(96, 32, reserved=True)

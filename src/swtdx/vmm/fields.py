"""The metadata fields that the hypervisor reads and writes, as plain identifiers."""

from __future__ import annotations

from typing import Final

from swtdx.arch.metadata import Context, by_name


def _id(context: Context, name: str) -> int:
    return by_name(context, name).id


# Of the module, by TDH.SYS.RD.
PKG_FMS: Final = _id(Context.SYS, "PKG_FMS")
UPDATE_VERSION: Final = _id(Context.SYS, "UPDATE_VERSION")
TDX_FEATURES0: Final = _id(Context.SYS, "TDX_FEATURES0")
CONFIG_FLAGS_FIXED0: Final = _id(Context.SYS, "CONFIG_FLAGS_FIXED0")
MAX_VCPUS_PER_TD: Final = _id(Context.SYS, "MAX_VCPUS_PER_TD")

# Of a TD, by TDH.MNG.RD.
TSC_OFFSET: Final = _id(Context.TD, "TSC_OFFSET")
TSC_MULTIPLIER: Final = _id(Context.TD, "TSC_MULTIPLIER")

# Of a vCPU, by TDH.VP.RD and TDH.VP.WR; the last four live in its TD VMCS.
GUEST_RIP: Final = _id(Context.VP, "GUEST_RIP")
VCPU_STATE_DETAILS: Final = _id(Context.VP, "VCPU_STATE_DETAILS")
PEND_NMI: Final = _id(Context.VP, "PEND_NMI")
NOTIFICATION_VECTOR: Final = _id(Context.VP, "POSTED_INTERRUPT_NOTIFICATION_VECTOR")
PID_ADDRESS: Final = _id(Context.VP, "POSTED_INTERRUPT_DESCRIPTOR")
SHARED_EPTP: Final = _id(Context.VP, "SHARED_EPTP")
PIN_BASED_CONTROLS: Final = _id(Context.VP, "PIN_BASED_CONTROLS")

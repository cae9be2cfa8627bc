"""What can go wrong in the hypervisor, in words that say how to mend it."""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as st
from swtdx.arch.host_leaves import HOST_LEAVES

#: Codes whose low 32 bits are an operand id (status-codes.md §1).
_WITH_OPERAND: Final = frozenset(
    {
        st.TDX_OPERAND_INVALID,
        st.TDX_OPERAND_ADDR_RANGE_ERROR,
        st.TDX_OPERAND_BUSY,
        st.TDX_PAGE_METADATA_INCORRECT,
        st.TDX_EPT_WALK_FAILED,
        st.TDX_EPT_ENTRY_STATE_INCORRECT,
        st.TDX_GPA_RANGE_NOT_BLOCKED,
        st.TDX_TLB_TRACKING_NOT_DONE,
    }
)
_ADVICE: Final = {
    st.SW_VMFAILINVALID: "no TDX module is loaded; the firmware must install it before the hypervisor starts",
    st.SW_GP: "the BIOS has not enabled SEAM on this machine",
    st.SW_UD: "the processor is not in VMX root operation",
}


class VmmError(Exception):
    """The hypervisor cannot do what it was asked."""


class ConfigError(VmmError):
    """A configuration that no TD, or not this platform, can have."""


class OutOfMemory(VmmError):
    """The hypervisor has no free physical memory of the kind that is needed."""


class NoHkid(VmmError):
    """Every private HKID of the platform is in use."""


def leaf_name(leaf: int) -> str:
    """The name of a SEAMCALL leaf of the module; its number if it has none."""
    known = HOST_LEAVES.get(leaf)
    return f"SEAMCALL leaf {leaf}" if known is None else known.name


def describe_status(status: int) -> str:
    """A status for people: its name, and its operand or details in words or hexadecimal."""
    name = st.name_of(status).removeprefix("TDX_")
    details = status & st.DETAILS_MASK
    if status in _ADVICE:
        return f"{name} ({_ADVICE[status]})"
    if st.code_of(status) in _WITH_OPERAND:
        return f"{name} | {st.OPERAND_NAMES.get(details, hex(details))}"
    return f"{name} | {details:#x}" if details else name


class SeamcallError(VmmError):
    """A SEAMCALL ended in a status that its caller cannot live with.

    ``leaf`` is the leaf's number, ``status`` the 64 bits of RAX, ``outputs`` RCX, RDX and R8 as the
    module left them (for leaves that walk the Secure EPT RCX and RDX show where the walk stopped).
    """

    def __init__(self, leaf: int, status: int, outputs: tuple[int, ...] = (), doing: str = "") -> None:
        self.leaf = leaf
        self.status = status
        self.outputs = outputs
        name = leaf_name(leaf)
        what = f" ({doing})" if doing else ""
        seen = ", ".join(
            f"{register}={value:#x}"
            for register, value in zip(("RCX", "RDX", "R8"), outputs, strict=False)
            if value
        )
        super().__init__(f"{name}{what}: {describe_status(status)}{'; ' + seen if seen else ''}")

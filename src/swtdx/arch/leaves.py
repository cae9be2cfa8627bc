"""All leaf functions together: the TDX Module's for host and guest, and the P-SEAMLDR's.

The general order of the checks of a SEAMCALL: leaf number, version and reserved bits of RAX; state
of the module; TDR or TDVPR operand; state of the TD; other operands; Secure EPT walk, entry lock,
entry state; new pages; TLB tracking.  Each leaf's ``outcomes`` give its own order.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.guest_leaves import GUEST_BY_NAME, GUEST_LEAVES
from swtdx.arch.host_leaves import HOST_BY_NAME, HOST_LEAVES
from swtdx.arch.leaf import GUEST, HOST, LOADER, Bits, Input, Leaf, Lock, Outcome, Output
from swtdx.arch.leaf_checks import invalid, plain

__all__ = [
    "BY_NAME",
    "GUEST_DISPATCH",
    "GUEST_LEAVES",
    "HOST_DISPATCH",
    "HOST_LEAVES",
    "LOADER_LEAVES",
    "RAX_BITS",
    "Leaf",
    "find",
]  # fmt: skip

#: RAX of a SEAMCALL to the module and of a TDCALL.
RAX_BITS: Final = (
    Bits("leaf", 15, 0), Bits("version", 23, 16), Bits("reserved", 62, 24), Bits("p_seamldr", 63, 63),
)  # fmt: skip
LEAF_MASK: Final = 0xFFFF
VERSION_SHIFT: Final = 16
RAX_RESERVED: Final = 0xFFFF_FFFF_FF00_0000
#: SEAMCALL with this bit of RAX set goes to the P-SEAMLDR, else to the TDX Module.
P_SEAMLDR: Final = 1 << 63

#: What the SEAMCALL dispatcher refuses before any leaf runs, in this order.
HOST_DISPATCH: Final = (
    invalid("RAX", "reserved bits of RAX are 0"),
    invalid("RAX", "the leaf has this version"),
    plain(s.TDX_SYS_SHUTDOWN, "the module is not shut down (but TDH.SYS.LP.SHUTDOWN is let through)"),
    plain(s.TDX_SYS_NOT_READY, "the module is ready, or the leaf belongs to its initialisation"),
    invalid("RAX", "the leaf exists"),
)
#: What the TDCALL dispatcher refuses before any leaf runs, in this order.
GUEST_DISPATCH: Final = (
    invalid("RAX", "reserved bits of RAX are 0"),
    invalid("RAX", "the leaf has this version"),
    invalid("RAX", "the leaf exists"),
)

_BAD: Final = Outcome(
    s.PSEAMLDR_EBADPARAM, None, "a shared HPA outside the SEAM range, aligned; reserved bits 0"
)
_CALL: Final = Outcome(s.PSEAMLDR_EBADCALL, None, "allowed in the loader's state and on this processor")
_ANY: Final = 0x1F

#: P-SEAMLDR leaf by number (bit 63 set); statuses are the loader's own.
LOADER_LEAVES: Final[dict[int, Leaf]] = {
    leaf.number: leaf
    for leaf in (
        Leaf(
            P_SEAMLDR | 0, "SEAMLDR.INFO", LOADER, "write SEAMLDR_INFO",
            inputs=(Input("RCX", "buffer (shared HPA, 256 bytes, aligned)"),),
            outcomes=(_BAD,), locks=(Lock("P_SEAMLDR", "X"),), sys_states=_ANY,
        ),
        Leaf(
            P_SEAMLDR | 1, "SEAMLDR.INSTALL", LOADER, "load or update the module; on every processor in turn",
            inputs=(Input("RCX", "SEAMLDR_PARAMS (shared HPA, 4 KiB, aligned)"),),
            outputs=(Output("RDX", "after an error: 0 try again, 1 reset needed"),),
            outcomes=(
                _BAD, _CALL,
                Outcome(s.PSEAMLDR_EBADHANDOFF, None, "an update can take the loaded module's state over"),
                Outcome(s.PSEAMLDR_ENOMEM, None, "the module fits in the SEAM range"),
                Outcome(s.PSEAMLDR_EUNSUPCPU, None, "the SIGSTRUCT lists every processor of the platform"),
                Outcome(s.PSEAMLDR_EBADSIG, None, "a well-formed SIGSTRUCT, from a trusted key, not older"),
                Outcome(s.PSEAMLDR_EBADHASH, None, "the pages have the signed hash"),
                Outcome(s.PSEAMLDR_EINTERRUPT, None, "no interrupt is pending"),
                Outcome(s.PSEAMLDR_ENOENTROPY, None, "RDRAND"),
                Outcome(s.PSEAMLDR_EUNSPECERR, None, "no internal error"),
            ),
            locks=(Lock("P_SEAMLDR", "X"),), sys_states=_ANY,
        ),
        Leaf(
            P_SEAMLDR | 2, "SEAMLDR.SHUTDOWN", LOADER, "unload the P-SEAMLDR; the ACM's processor goes last",
            outcomes=(_CALL,), locks=(Lock("P_SEAMLDR", "X"),), sys_states=_ANY,
        ),
        Leaf(
            P_SEAMLDR | 3, "SEAMLDR.SEAMINFO", LOADER, "write the low half of P_SYS_INFO_TABLE",
            inputs=(Input("RCX", "buffer (shared HPA, 2 KiB, aligned)"),),
            outcomes=(_BAD,), locks=(Lock("P_SEAMLDR", "X"),), sys_states=_ANY,
        ),
    )
}  # fmt: skip

#: Every leaf by its full name.
BY_NAME: Final[dict[str, Leaf]] = {
    **HOST_BY_NAME,
    **GUEST_BY_NAME,
    **{leaf.name: leaf for leaf in LOADER_LEAVES.values()},
}

_SIDES: Final = {HOST: HOST_LEAVES, GUEST: GUEST_LEAVES, LOADER: LOADER_LEAVES}


def find(side: str, number: int) -> Leaf | None:
    """The leaf ``number`` of ``side`` (``"host"``, ``"guest"`` or ``"loader"``), or None.

    Raises:
        ValueError: there is no such side.
    """
    try:
        return _SIDES[side].get(number)
    except KeyError:
        raise ValueError(f"leaves are on the sides {', '.join(_SIDES)}, not {side!r}") from None

# ruff: noqa: E501  (a table)
"""Every TDCALL leaf of the TDX Module, by number and by name.

Source: ``td_dispatcher/tdx_td_dispatcher.c``, ``vm_exits/tdg_*.c`` and ``tdg_vp_enter.c`` of the TDX
module 1.5.01, check by check.  A leaf that walks guest memory may also end in a TD exit (EPT
violation) or a #VE instead of a status; the TDCALL then runs again.
"""

from __future__ import annotations

from typing import Final

from swtdx.arch import status as s
from swtdx.arch.leaf import (
    GUEST,
    LEAF,
    ONES,
    PARTITIONING,
    SAME,
    ZERO,
    Bits,
    Input,
    Kind,
    Leaf,
    Lock,
    Output,
    matrix,
)
from swtdx.arch.leaf_checks import (
    METADATA_WRITE,
    OLD_OUT,
    VALUE_OUT,
    VMCALL_BITS,
    WRITE_IN,
    busy,
    field_in,
    gpa_level,
    invalid,
    metadata_read,
    next_out,
    page,
    plain,
)
from swtdx.arch.metadata_field import Context

_ALL: Final = matrix("YYYYY")
_GPA: Final = invalid(
    "RCX", "level and reserved bits allowed; GPA aligned to the level, private, within GPAW"
)
_VM_ZERO: Final = Input("RCX", "0", kind=Kind.NUMBER)
_NEXT_V0: Final = Output("RDX", "id of the next element that the guest may read, -1 after the last", ONES, 1)
_UUID: Final = tuple(f"R{n}" for n in range(10, 14))
_SERVTD: Final = (
    invalid("RCX", "a binding handle whose slot exists"),
    *page("TDR", "TDR", exclusive=False),
    busy("OP_STATE", "the target's op_state lock, shared"),
    plain(s.TDX_TARGET_UUID_UPDATED, "the target still has the UUID given"),
    plain(s.TDX_TARGET_UUID_MISMATCH, "the UUID given is the target's"),
    busy("SERVTD_BINDINGS", "the target's bindings lock, shared"),
    plain(s.TDX_SERVTD_NOT_BOUND, "bound in this slot"),
    busy("RTMR", "RTMR lock, shared"),
)
_SERVTD_LOCKS: Final = (Lock("TDR", "S"), Lock("OP_STATE", "S"), Lock("SERVTD_BINDINGS", "S"))


def _guest(number: int, name: str, summary: str, **rest: object) -> Leaf:
    return Leaf(number, name, GUEST, summary, sys_states=_ALL, **rest)  # type: ignore[arg-type]


_LEAVES: Final = (
    _guest(
        0, "TDG.VP.VMCALL", "leave to the hypervisor with the registers that the guest selects",
        inputs=(Input("RCX", "registers to pass: bit n is register n, bit 16 + n is XMM n", VMCALL_BITS),),
        outputs=(Output("RCX", "the same mask"), *(Output(name, "from the hypervisor, if selected")
                 for name in ("RDX", "RBX", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16))))),
        outcomes=(invalid("RCX", "bits of RAX, RCX, RSP (and RBP with NO_RBP_MOD) and 63:32 are 0"),),
    ),
    _guest(
        1, "TDG.VP.INFO", "what this TD and this VCPU are",
        outputs=(
            Output("RCX", "GPA width: 48 or 52"),
            Output("RDX", "ATTRIBUTES"),
            Output("R8", "NUM_VCPUS (31:0), MAX_VCPUS (63:32)"),
            Output("R9", "VCPU_INDEX"),
            Output("R10", "bit 0: TDG.SYS.RD exists"),
            Output("R11", "0"),
        ),
    ),
    _guest(
        2, "TDG.MR.RTMR.EXTEND", "extend a run-time measurement register",
        inputs=(Input("RCX", "48 bytes (private GPA, aligned to 64)", kind=Kind.GPA, detail=64), Input("RDX", "register, 0..3", kind=Kind.COUNT)),
        outcomes=(
            invalid("RCX", "a private GPA within GPAW, aligned to 64"),
            invalid("RDX", "0..3"),
            busy("RTMR", "RTMR lock, exclusive"),
        ),
        locks=(Lock("RTMR", "X"),),
    ),
    _guest(
        3, "TDG.VP.VEINFO.GET", "take the information of the last #VE",
        outputs=(
            Output("RCX", "exit reason", ZERO),
            Output("RDX", "exit qualification", ZERO),
            Output("R8", "guest linear address", ZERO),
            Output("R9", "guest physical address", ZERO),
            Output("R10", "instruction length (31:0), instruction information (63:32)", ZERO),
        ),
        outcomes=(plain(s.TDX_NO_VALID_VE_INFO, "a #VE whose information was not taken"),),
    ),
    _guest(
        4, "TDG.MR.REPORT", "make a TDREPORT",
        inputs=(
            Input("RCX", "report buffer (GPA, 1024 bytes, aligned)", kind=Kind.BUFFER, detail=1024),
            Input("RDX", "REPORTDATA (GPA, 64 bytes, aligned)", kind=Kind.BUFFER, detail=64),
            Input("R8", "report subtype, 0", kind=Kind.NUMBER),
        ),
        outcomes=(
            invalid("RCX", "aligned to 1024"),
            invalid("RDX", "aligned to 64"),
            invalid("RDX", "within GPAW"),
            invalid("R8", "0"),
            busy("RTMR", "RTMR lock, shared"),
            invalid("RCX", "within GPAW"),
        ),
        locks=(Lock("RTMR", "S"),),
    ),
    _guest(
        5, "TDG.VP.CPUIDVE.SET", "let CPUID raise #VE",
        inputs=(Input("RCX", "when", (Bits("supervisor", 0, 0), Bits("user", 1, 1), Bits("reserved", 63, 2)), kind=Kind.COUNT),),
        outcomes=(invalid("RCX", "bits 63:2 are 0"),),
    ),
    _guest(
        6, "TDG.MEM.PAGE.ACCEPT", "accept a pending page: it is zeroed and mapped",
        inputs=(gpa_level(0, 1),),
        outcomes=(
            _GPA,
            plain(s.TDX_PAGE_ALREADY_ACCEPTED, "not mapped for the guest yet, at this level or above"),
            busy("RCX", "Secure EPT entry lock"),
            plain(s.TDX_PAGE_SIZE_MISMATCH, "not mapped by smaller pages"),
        ),
        locks=(Lock("SEPT_ENTRY", "X"),),
        sept_states=matrix("..........Y...Y."),
    ),
    _guest(
        7, "TDG.VM.RD", "read a metadata element of this TD",
        inputs=(_VM_ZERO, field_in(Context.TD)), outputs=(_NEXT_V0, VALUE_OUT),
        outcomes=(invalid("RAX", "version 0 or 1"), invalid("RCX", "0"), *metadata_read(enumerate_ids=True)),
        max_version=1,
    ),
    _guest(
        8, "TDG.VM.WR", "write a metadata element of this TD",
        inputs=(_VM_ZERO, field_in(Context.TD), *WRITE_IN), outputs=(OLD_OUT,),
        outcomes=(invalid("RCX", "0"), *METADATA_WRITE),
    ),
    _guest(
        9, "TDG.VP.RD", "read a metadata element of this VCPU",
        inputs=(_VM_ZERO, field_in(Context.VP)), outputs=(next_out(), VALUE_OUT),
        outcomes=(invalid("RCX", "0"), *metadata_read(enumerate_ids=True)),
    ),
    _guest(
        10, "TDG.VP.WR", "write a metadata element of this VCPU",
        inputs=(_VM_ZERO, field_in(Context.VP), *WRITE_IN), outputs=(OLD_OUT,),
        outcomes=(invalid("RCX", "0"), *METADATA_WRITE),
    ),
    _guest(
        11, "TDG.SYS.RD", "read a metadata element of the module",
        inputs=(field_in(Context.SYS),), outputs=(next_out(), VALUE_OUT),
        outcomes=metadata_read(enumerate_ids=True),
    ),
    _guest(
        12, "TDG.SYS.RDALL", "write a list of the module's metadata",
        inputs=(Input("RDX", "buffer for the list (private GPA, 4 KiB)", kind=Kind.GPA, detail=4096), Input("R8", "first field id, -1 for all", kind=Kind.FIELD, detail=Context.SYS)),
        outputs=(Output("R8", "id to go on with, -1 when done", ONES),),
        outcomes=(
            invalid("RDX", "a private GPA within GPAW, aligned to 4 KiB"),
            plain(s.TDX_METADATA_FIELD_ID_INCORRECT, "an existing field, its first element, its size"),
            plain(s.TDX_METADATA_LIST_OVERFLOW, "the rest of the list fits in the buffer"),
        ),
    ),
    _guest(
        18, "TDG.SERVTD.RD", "read a metadata element of a TD that this service TD is bound to",
        inputs=(Input("RCX", "binding handle"), field_in(Context.TD), *(Input(r, "UUID of the target") for r in _UUID)),
        outputs=(next_out(), VALUE_OUT, *(Output(r, "UUID of the target", SAME) for r in _UUID)),
        outcomes=(*_SERVTD, *metadata_read(enumerate_ids=True)),
        locks=_SERVTD_LOCKS, op_states=matrix("YYYYYYYYYYY"),
    ),
    _guest(
        20, "TDG.SERVTD.WR", "write a metadata element of a TD that this service TD is bound to",
        inputs=(Input("RCX", "binding handle"), field_in(Context.TD), *WRITE_IN, *(Input(r, "UUID of the target") for r in _UUID)),
        outputs=(OLD_OUT, *(Output(r, "UUID of the target", SAME) for r in _UUID)),
        outcomes=(*_SERVTD, *METADATA_WRITE),
        locks=_SERVTD_LOCKS, op_states=matrix("YYYY..YYYYY"),
    ),
    _guest(
        22, "TDG.MR.VERIFYREPORT", "check the MAC of a report of this platform",
        inputs=(Input("RCX", "REPORTMACSTRUCT (private GPA, aligned to 256)", kind=Kind.GPA, detail=256),),
        outcomes=(
            invalid("RAX", "the processor can verify reports"),
            invalid("RCX", "a private GPA within GPAW, aligned to 256"),
            plain(s.TDX_INVALID_CPUSVN, "CPUSVN of this platform"),
            plain(s.TDX_INVALID_REPORTMACSTRUCT, "MAC of this platform"),
        ),
    ),
    _guest(
        23, "TDG.MEM.PAGE.ATTR.RD", "read a page's mapping and attributes",
        inputs=(Input("RCX", "private GPA", kind=Kind.GPA, detail=1),),
        outputs=(
            Output("RCX", "GPA (51:12), level (2:0), pending (62)", ZERO),
            Output("RDX", "attributes for VMs 0..3, 16 bits each", ZERO),
        ),
        outcomes=(invalid("RCX", "private, within GPAW"), busy("RCX", "Secure EPT entry lock")),
        locks=(Lock("SEPT_ENTRY", "X"),),
        sept_states=matrix("....Y.YYYYY.YYYY"),
    ),
    _guest(
        24, "TDG.MEM.PAGE.ATTR.WR", "set a page's attributes for L2 VMs",
        inputs=(
            gpa_level(0, 2),
            Input("RDX", "attributes for VMs 0..3, 16 bits each", kind=Kind.NUMBER),
            Input("R8", "masks for VMs 0..3, 16 bits each; bit 15 of each: flush", kind=Kind.NUMBER),
        ),
        outputs=(
            Output("RCX", "GPA (51:12), level (2:0), pending (62)", ZERO),
            Output("RDX", "new attributes; after PAGE_ATTR_INVALID the ones refused", LEAF),
        ),
        outcomes=(
            invalid("RDX", "attributes only for L2 VMs that exist, and VALID if any"),
            invalid("R8", "masks only for L2 VMs that exist"),
            _GPA,
            busy("RCX", "Secure EPT entry lock"),
            plain(s.TDX_PAGE_SIZE_MISMATCH, "mapped at this level"),
            plain(s.TDX_L2_SEPT_WALK_FAILED, "the L2 VM's walk reaches the level"),
            plain(s.TDX_PAGE_ATTR_INVALID, "attributes that go together"),
        ),
        locks=(Lock("SEPT_ENTRY", "X"),),
        sept_states=matrix("....Y...Y.Y...Y."),
    ),
    _guest(
        25, "TDG.VP.ENTER", "run an L2 VM",
        inputs=(
            Input("RCX", "VM and flags", (Bits("do_invept", 1, 0), Bits("reserved", 51, 2), Bits("vm", 53, 52), Bits("reserved2", 63, 54))),
            Input("RDX", "L2_ENTER_GUEST_STATE (private GPA, aligned to 256)"),
        ),
        outputs=(
            Output("RCX", "exit qualification"), Output("RDX", "guest linear address"),
            Output("RSI", "CS selector, access rights, limit"), Output("RDI", "CS base"),
            Output("R8", "guest physical address"), Output("R9", "interruption information and error code"),
            Output("R10", "IDT-vectoring information and error code"),
            Output("R11", "instruction information and length"), Output("R12", "CPL"),
        ),
        outcomes=(
            invalid("RDX", "a private GPA within GPAW, aligned to 256"),
            invalid("RCX", "an L2 VM that exists, reserved bits 0"),
            invalid("L2_VAPIC_GPA", "the VM's virtual APIC page is set"),
            plain(s.TDX_PENDING_INTERRUPT, "no interrupt is pending for L1"),
            plain(s.TDX_L2_EXIT_HOST_ROUTED_ASYNC, "L2 exit passed on by the host"),
            plain(s.TDX_L2_EXIT_HOST_ROUTED_TDVMCALL, "L2's TDVMCALL passed on by the host"),
            plain(s.TDX_L2_EXIT_PENDING_INTERRUPT, "L2 exit: an interrupt is pending for L1"),
        ),
        support=PARTITIONING,
    ),
    _guest(
        26, "TDG.VP.INVEPT", "flush translations of L2 VMs",
        inputs=(Input("RCX", "VMs, bits 1..3", kind=Kind.NUMBER),),
        outcomes=(invalid("RCX", "only L2 VMs that exist"),),
    ),
    _guest(
        27, "TDG.VP.INVVPID", "flush linear addresses of an L2 VM",
        inputs=(
            Input("RCX", "VM and type", (Bits("list", 0, 0), Bits("reserved", 51, 1), Bits("vm", 53, 52), Bits("reserved2", 63, 54)), kind=Kind.NUMBER),
            Input("RDX", "a linear address and count, or a list of them", kind=Kind.NUMBER),
        ),
        outputs=(Output("RDX", "the list's part that is not done"),),
        outcomes=(
            invalid("RCX", "an L2 VM that exists, reserved bits 0"),
            invalid("RDX", "a list within a page, at a private GPA"),
            plain(s.TDX_GLA_NOT_CANONICAL, "canonical addresses"),
        ),
    ),
)  # fmt: skip

#: Leaf by number (RAX[15:0]), ascending.
GUEST_LEAVES: Final[dict[int, Leaf]] = {leaf.number: leaf for leaf in _LEAVES}

#: Leaf by its full name, such as ``"TDG.VP.VMCALL"``.
GUEST_BY_NAME: Final[dict[str, Leaf]] = {leaf.name: leaf for leaf in _LEAVES}

"""State machines of the module, a TD, a VCPU, an HKID and a page, as numbers.

Sources: TDX module 1.5.01, ``tdx_global_data.h`` (module, KOT), ``td_control_structures.h`` (life
cycle), ``op_state_lookup.h``, ``tdx_tdvps.h`` (VCPU), ``pamt_manager.h`` (page types), ``tdx_locks.h``.
The states of Secure EPT entries have a module of their own, :mod:`swtdx.arch.sept`.

Members are ints: they can be stored in a control structure and compared as they are.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class SysState(IntEnum):
    """State of the whole module."""

    SYSINIT_PENDING = 0
    SYSINIT_DONE = 1
    SYSCONFIG_DONE = 2
    READY = 3
    SHUTDOWN = 4


class Lifecycle(IntEnum):
    """TDR.LIFECYCLE_STATE: which keys the TD has."""

    HKID_ASSIGNED = 0
    KEYS_CONFIGURED = 1
    BLOCKED = 2
    TEARDOWN = 3


class OpState(IntEnum):
    """TDCS.OP_STATE: what may be done with a TD whose keys are configured."""

    UNINITIALIZED = 0
    INITIALIZED = 1
    RUNNABLE = 2
    LIVE_EXPORT = 3
    PAUSED_EXPORT = 4
    POST_EXPORT = 5
    MEMORY_IMPORT = 6
    STATE_IMPORT = 7
    POST_IMPORT = 8
    LIVE_IMPORT = 9
    FAILED_IMPORT = 10


#: Operation states in which VCPUs may run, so that TLB tracking is enforced; bit n is state n.
TLB_TRACKED_OP_STATES: Final = 1 << OpState.RUNNABLE | 1 << OpState.LIVE_EXPORT | 1 << OpState.LIVE_IMPORT


class VcpuState(IntEnum):
    """TDVPS.VCPU_STATE."""

    UNINITIALIZED = 0
    READY = 2
    ACTIVE = 4
    DISABLED = 8
    IMPORT = 16


class LastTdExit(IntEnum):
    """TDVPS.LAST_TD_EXIT: how the VCPU left last."""

    ASYNC_FAULT = 0
    ASYNC_TRAP = 1
    TDVMCALL = 2


class KotState(IntEnum):
    """State of an HKID in the key ownership table."""

    FREE = 0
    ASSIGNED = 1
    FLUSHED = 2
    RESERVED = 3


class PageType(IntEnum):
    """Type of a page in its PAMT entry (2 and 7 are not used)."""

    NDA = 0
    RSVD = 1
    REG = 3
    TDR = 4
    TDCX = 5
    TDVPR = 6
    EPT = 8


class PageSize(IntEnum):
    """Size of a page in PAMT leaves and in TDH.PHYMEM.PAGE.RDMD; also its Secure EPT level."""

    SIZE_4K = 0
    SIZE_2M = 1
    SIZE_1G = 2


#: Bytes of a page, by :class:`PageSize`.
PAGE_BYTES: Final = (1 << 12, 1 << 21, 1 << 30)

#: TDVPS.ASSOC_LPID of a VCPU that no processor holds.
NO_LP: Final = 0xFFFF_FFFF

# A sharex lock (16 bits): exclusive bit 0, readers from bit 1 up.  With host priority: exclusive bit
# 0, host priority bit 1, readers from bit 2 up.
SHAREX_EXCLUSIVE: Final = 1 << 0
SHAREX_READER: Final = 1 << 1
SHAREX_HP_EXCLUSIVE: Final = 1 << 0
SHAREX_HP_PRIORITY: Final = 1 << 1
SHAREX_HP_READER: Final = 1 << 2


class ServiceTdBinding(IntEnum):
    """State of a slot in the table of service TD bindings."""

    NOT_BOUND = 0
    PRE_BOUND = 1
    BOUND = 2

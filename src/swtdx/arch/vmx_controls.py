"""Bits of the VM-execution controls that swtdx speaks of.

Source: Intel SDM volume 3, section 25.6 (pin-based, primary, secondary and tertiary processor-based
controls; 25.7, VM-exit controls); PCONFIG and user wait from the same tables.
"""

from __future__ import annotations

from typing import Final

# Pin-based
PIN_PROCESS_POSTED: Final = 1 << 7
# Primary processor-based
PROC_MWAIT_EXITING: Final = 1 << 10
PROC_RDPMC_EXITING: Final = 1 << 11
PROC_NMI_WINDOW_EXITING: Final = 1 << 22
PROC_MOV_DR_EXITING: Final = 1 << 23
PROC_MONITOR_EXITING: Final = 1 << 29
# Secondary
PROC2_PML: Final = 1 << 17
PROC2_EPT_VIOLATION_VE: Final = 1 << 18
PROC2_USER_WAIT_PAUSE: Final = 1 << 26
PROC2_PCONFIG: Final = 1 << 27
# Tertiary
PROC3_GPAW: Final = 1 << 5
# Guest interruptibility (section 25.4.2)
BLOCKING_BY_STI: Final = 1 << 0
BLOCKING_BY_MOV_SS: Final = 1 << 1
BLOCKING_BY_NMI: Final = 1 << 3
# Pending debug exceptions
PENDING_DEBUG_BS: Final = 1 << 14
# VM exit
EXIT_ACK_INTERRUPT: Final = 1 << 15
#: IA32_PERF_GLOBAL_CTRL is loaded, and saved.
EXIT_PERF: Final = 1 << 12 | 1 << 30
# VM entry
ENTRY_PERF: Final = 1 << 13
ENTRY_PKRS: Final = 1 << 22

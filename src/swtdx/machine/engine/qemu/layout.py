"""Where things lie in the engine's own memory, and the mailbox through which the stub is driven.

QEMU's RAM is two files: the engine's (this one, first) and the simulated machine's frames.  The
engine's memory has no HPA in the simulated machine, so no simulated software can reach it.

Addresses are QEMU physical addresses; ``stub.S`` declares the same numbers (a test compares them).
"""

from __future__ import annotations

from typing import Final

from swtdx.arch.units import MIB

#: Size of the engine's own memory, a multiple of 2 MiB so that large frames stay aligned.
ENGINE_SIZE: Final = 64 * MIB

NUM_CPUS: Final = 0x20000
NEXT_CPU: Final = 0x20004
XCR0_ALL: Final = 0x20008
PML4: Final = 0x21000
PDPT: Final = 0x22000  # 4 pages: 2 TiB of identity map in 1 GiB pages
MAILBOX: Final = 0x40000
HOST_SAVE: Final = 0x60000
STACK: Final = 0x80000
#: At most this many logical processors (mailboxes, stacks and host save pages are reserved for it).
MAX_CPUS: Final = 32

#: I/O permission map (3 pages), all ones: every IN and OUT exits.
IOPM: Final = 0x32000
#: A page to stage copies in.
STAGING: Final = 0x36000

#: Contexts: a VMCB, registers, extra state and an MSR permission map each.
CONTEXTS: Final = 0x100000
CONTEXT_SIZE: Final = 0x6000
MAX_CONTEXTS: Final = 160
#: The rest is a pool of pages for nested page tables.
POOL: Final = 0x600000

# Mailbox fields (bytes from the mailbox's start)
MB_SEQ: Final = 0x00
MB_DONE: Final = 0x04
MB_CMD: Final = 0x08
MB_RING: Final = 0x0C
MB_ASLEEP: Final = 0x10
MB_KICKED: Final = 0x14
MB_TIMER_OP: Final = 0x18
MB_LEAST: Final = 0x1C
MB_VMCB: Final = 0x20
MB_GPRS: Final = 0x28
MB_EXTRA: Final = 0x30
MB_EXIT_TSC: Final = 0x38
MB_SRC: Final = 0x40
MB_DST: Final = 0x48
MB_LEN: Final = 0x50
MB_INDEX: Final = 0x58
MB_TIMER_FIRED: Final = 0x5C
MB_RESULT: Final = 0x60
MB_DR7: Final = 0x70
MB_LOADING: Final = 0x74
MB_FAILED: Final = 0x78
MB_DEADLINE: Final = 0x80
MB_SCALE: Final = 0x88
MB_CR4: Final = 0x90
MB_SPIN: Final = 0x98
MB_PROBE_TSC: Final = 0xA0
# Of the root stub:
MB_OWED: Final = 0xA8
MB_NMIS: Final = 0xAC
MB_VECTOR: Final = 0xB0
MB_LOAD_FIRST: Final = 0xB4
MB_OLD_VMCB: Final = 0xB8
MB_OLD_EXTRA: Final = 0xC0

#: In MB_RESULT: an exception in the stub, at the address that the next quadword says.
STUB_FAULT: Final = 0xDEAD

#: Vectors of the stub's interrupts: one that makes it leave the guest, and one that only wakes it.
VEC_IPI: Final = 0x41
VEC_WAKE: Final = 0x42

CMD_RUN: Final = 1
CMD_SAVE: Final = 2
CMD_LOAD: Final = 3
CMD_REWRITE: Final = 4
CMD_PROBE: Final = 5
# Of the root stub: take an interrupt from the local APIC, and end it.
CMD_ACK: Final = 6
CMD_EOI: Final = 7

# A context's pages
CTX_VMCB: Final = 0x0000
CTX_GPRS: Final = 0x1000
CTX_EXTRA: Final = 0x2000
CTX_MSRPM: Final = 0x3000  # two pages

# The extra page
EX_XSAVE: Final = 0x000
EX_XSAVE_SIZE: Final = 0xC00
EX_XCR0: Final = 0xF00
EX_TSC_AUX: Final = 0xF08
EX_DR0: Final = 0xF10
EX_STEP: Final = 0xF30

DOORBELL_PORT: Final = 0xE9

#: DR7 with no breakpoint enabled.
DR7_OFF: Final = 0x400
#: Linear addresses that the stub touches while a guest's breakpoints are set: its code and its stacks.
STUB_CODE: Final = range(0xF0000, 0x100000)
STUB_STACKS: Final = range(STACK, 0xA0000)

assert CONTEXTS + MAX_CONTEXTS * CONTEXT_SIZE <= POOL
assert STACK + MAX_CPUS * 1024 <= 0xA0000

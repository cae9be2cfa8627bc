"""How a TD is started: which board it has, and the plan of its first memory (:mod:`swtdx.guests.plan`).

A way to start a TD is a class with the two methods of :class:`Boot`; :func:`swtdx.vmm.launch.launch` takes
any (``LaunchConfig.boot``).  :func:`build` carries the plan out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from swtdx.arch.guest_map import GUEST_MAP
from swtdx.arch.units import PAGE
from swtdx.devices.board import Board, BoardConfig
from swtdx.guests.direct_boot import DirectBoot, build_direct_boot, build_tiny_boot
from swtdx.guests.kernel import KernelImage
from swtdx.guests.memory_map import ACPI_GPA, EVENT_LOG_BYTES, EVENT_LOG_GPA, MAILBOX_GPA
from swtdx.guests.plan import GuestPlan
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.processor import Processor
from swtdx.vmm.shared_ept import fill
from swtdx.vmm.td import InitialPage, Td
from swtdx.vmm.td_params import TdConfig


class Boot(Protocol):
    """A way to start a TD."""

    def board(self, td: TdConfig) -> BoardConfig:
        """The devices that the guest expects."""

    def plan(self, td: TdConfig, board: Board) -> GuestPlan:
        """The TD before its first instruction.  ``board`` is that of :meth:`board`, perhaps one that is
        only described: its ACPI tables may be part of the plan.

        Raises:
            GuestError: what shall be started cannot be.
            ConfigError: the TD cannot be like that.
        """


def _direct_board(td: TdConfig) -> BoardConfig:
    # ECAM alone: each access to configuration space by ports would be two, with three VM exits each.
    # Until Linux trusts the TSC it counts ticks, and in a slow boot many come too late to count:
    # seconds, with several vCPUs.  The clock's driver then sets the time again, within half a second.
    return BoardConfig(
        apic_ids=tuple(range(td.vcpus)),
        ecam=GUEST_MAP.ecam,
        mechanism1=False,
        ioapic=True,
        rtc_driver=True,
    )


@dataclass(frozen=True, slots=True)
class TinyGuest:
    """The guest that swtdx carries with it."""

    def board(self, td: TdConfig) -> BoardConfig:
        """A directly booted kernel's."""
        return _direct_board(td)

    def plan(self, td: TdConfig, board: Board) -> DirectBoot:
        """Its few pages."""
        return build_tiny_boot()


@dataclass(frozen=True, slots=True)
class DirectKernel:
    """A kernel by our shim, without firmware.

    Args:
        kernel: a bzImage.
        initrd: may be empty.
        cmdline: the kernel's command line.
        memory: bytes of RAM.
    """

    kernel: bytes | KernelImage
    initrd: bytes
    cmdline: str
    memory: int

    def board(self, td: TdConfig) -> BoardConfig:
        """The fewest devices that Linux needs."""
        return _direct_board(td)

    def plan(self, td: TdConfig, board: Board) -> DirectBoot:
        """The shim, and what it loads.

        Raises:
            GuestError: the kernel, the initrd or the sizes do not fit together.
            ConfigError: the memory is not made of pages.
        """
        if self.memory < PAGE or self.memory % PAGE:
            raise ConfigError(f"a TD's memory is a whole number of 4 KiB pages, not {self.memory} bytes")
        acpi = board.acpi(
            ACPI_GPA,
            ccel=(EVENT_LOG_GPA, EVENT_LOG_BYTES),
            wakeup_mailbox=MAILBOX_GPA if td.vcpus > 1 else None,
        )
        return build_direct_boot(self.kernel, self.initrd, self.cmdline, self.memory, td.gpaw, acpi)


def build(
    hypervisor: Hypervisor,
    config: TdConfig,
    plan: GuestPlan,
    processors: list[Processor] | None = None,
    *,
    preaugment: bool = False,
) -> Td:
    """The TD of ``plan``, ready to run.

    Args:
        processors: where its vCPUs will run, in turn; all of the hypervisor's by default.
        preaugment: give it all private memory now, instead of on demand.

    Raises:
        VmmError: it cannot be built; nothing of it is left.
    """
    ram = [(part.base, part.end) for part in plan.ram]
    td = Td.build(
        hypervisor,
        config,
        [InitialPage(page.gpa, page.data, page.measured) for page in plan.pages],
        ram=ram,
        entry_value=plan.vp_init_rdx,
        processors=processors,
    )
    try:
        blobs = [(blob.gpa & ~config.shared_bit, blob.data) for blob in plan.shared]
        for gpa, data in blobs:
            td.shared.map(gpa, (len(data) + PAGE - 1) & -PAGE)
        fill(hypervisor.host.memory, td.shared.translate, blobs)
        if preaugment:
            with td.cpu.borrowed():
                for start, end in ram:
                    td.private.augment_range(td.cpu, start, end)
    except BaseException:
        td.teardown()
        raise
    return td

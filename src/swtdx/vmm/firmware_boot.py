"""Starting a TD with firmware: TDVF on the board of a q35."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from swtdx.arch.guest_map import q35_map
from swtdx.devices import fw_cfg
from swtdx.devices.board import Board, BoardConfig
from swtdx.devices.fw_cfg import FwCfgContents
from swtdx.devices.part import Part
from swtdx.devices.parts import DebugConsole
from swtdx.devices.smbios import SETTINGS as SMBIOS_SETTINGS
from swtdx.devices.smbios import SmbiosConfig, smbios_files
from swtdx.guests.kernel import KernelImage
from swtdx.guests.like_qemu import LikeQemu
from swtdx.guests.plan import GuestPlan
from swtdx.guests.tdvf_boot import TdvfImage, build_tdvf_boot, passes_rbp, q35_ram, td_hob
from swtdx.vmm.errors import ConfigError
from swtdx.vmm.td_params import TdConfig

__all__ = ["SMBIOS_SETTINGS", "FirmwareBoot", "SmbiosConfig"]

_E820_RAM = 1
#: ``etc/system-states``, of S0 to S5: bit 7 says that there is such a state.  A TD cannot be suspended.
_SYSTEM_STATES = bytes((0x80, 0, 0, 1, 2, 0x80))


@dataclass(frozen=True, slots=True)
class FirmwareBoot:
    """TD firmware, and what it finds: a kernel, as QEMU's ``-kernel`` gives it, or nothing.

    Args:
        image: the firmware.
        memory: bytes of RAM.
        kernel: a bzImage for the firmware to start; None: it looks for something to boot itself.
        initrd, cmdline: of the kernel.
        log: takes what the firmware prints at its debug port.
        files: more files for fw_cfg, by name; they replace ours of the same name.
        console: a virtio console (hvc0) beside the serial port.
        like: a QEMU whose fw_cfg files and ACPI tables the firmware gets instead of ours.
        smbios: what SMBIOS tables say besides memory and processors; None: there are none.
    """

    image: TdvfImage
    memory: int
    kernel: KernelImage | None = None
    initrd: bytes = b""
    cmdline: str = ""
    log: Callable[[bytes], None] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    console: bool = True
    smbios: SmbiosConfig | None = None
    like: LikeQemu | None = None

    @property
    def passes_rbp(self) -> bool:
        """Whether it needs a TD that may change the hypervisor's RBP (``TdConfig.rbp_mod``)."""
        return passes_rbp(self.image)

    def board(self, td: TdConfig) -> BoardConfig:
        """A q35's."""
        places = q35_map(self.memory)
        ram = q35_ram(self.memory, places)
        log = self.log
        more: tuple[Callable[[], Part], ...] = ()
        if log is not None:
            more = (lambda: DebugConsole(log),)
        return BoardConfig(
            apic_ids=tuple(range(td.vcpus)),
            pci_window=places.pci_window,
            chipset=True,
            console=self.console,
            fw_cfg=self._contents(td),
            ram=(ram[0].size, sum(part.size for part in ram[1:])),
            ioapic=True,
            more=more,
        )

    def plan(self, td: TdConfig, board: Board) -> GuestPlan:
        """The sections of the image.

        Raises:
            GuestError: the image and the memory do not fit together.
        """
        return build_tdvf_boot(self.image, self.memory, q35_map(self.memory))

    def td_hob(self) -> bytes:
        """The memory map that the firmware gets.

        Raises:
            GuestError: the image and the memory do not fit together.
        """
        return td_hob(self.image, self.memory, q35_map(self.memory))

    def _contents(self, td: TdConfig) -> FwCfgContents:
        ram = q35_ram(self.memory, q35_map(self.memory))
        items = {
            fw_cfg.RAM_SIZE: self.memory.to_bytes(8, "little"),
            fw_cfg.NO_GRAPHIC: (1).to_bytes(2, "little"),
            fw_cfg.CPU_COUNT: td.vcpus.to_bytes(2, "little"),
            fw_cfg.MAX_CPUS: td.vcpus.to_bytes(2, "little"),
        }
        if self.kernel is not None:
            items |= self._kernel_items(self.kernel)
        if self.like is not None:
            return FwCfgContents(items | self.like.items(), self._files_of(self.like), self.like.acpi)
        files = {
            "bootorder": b"",
            "etc/e820": b"".join(struct.pack("<QQI", part.base, part.size, _E820_RAM) for part in ram),
            "etc/system-states": _SYSTEM_STATES,
        }
        if self.smbios is not None:
            sizes = ram[0].size, sum(part.size for part in ram[1:])
            files |= smbios_files(replace(self.smbios, ram=sizes, vcpus=td.vcpus))
        return FwCfgContents(items, files | dict(self.files))

    def _files_of(self, like: LikeQemu) -> dict[str, bytes]:
        """That QEMU's files.

        Raises:
            ConfigError: its memory is not laid out as ours.
        """
        files = like.files()
        entries = struct.iter_unpack("<QQI", files.get("etc/e820", b""))
        theirs = [(base, size) for base, size, kind in entries if kind == _E820_RAM]
        ours = [(part.base, part.size) for part in q35_ram(self.memory, q35_map(self.memory))]
        if theirs != ours:
            raise ConfigError(
                f"--like-qemu: this QEMU lays {self.memory >> 20} MiB of RAM out as {theirs}, a q35 as {ours}"
            )
        return files

    def _kernel_items(self, kernel: KernelImage) -> dict[int, bytes]:
        """The file, cut where its protected-mode part begins and otherwise as it is: it will be measured."""
        setup, rest = kernel.data[: kernel.setup_bytes], kernel.data[kernel.setup_bytes :]
        cmdline = self.cmdline.encode() + b"\0"
        parts = (
            (fw_cfg.SETUP_SIZE, fw_cfg.SETUP_DATA, setup),
            (fw_cfg.KERNEL_SIZE, fw_cfg.KERNEL_DATA, rest),
            (fw_cfg.INITRD_SIZE, fw_cfg.INITRD_DATA, self.initrd),
            (fw_cfg.COMMAND_LINE_SIZE, fw_cfg.COMMAND_LINE_DATA, cmdline),
        )
        return {
            key: value
            for size, data, part in parts
            for key, value in ((size, len(part).to_bytes(4, "little")), (data, part))
        }

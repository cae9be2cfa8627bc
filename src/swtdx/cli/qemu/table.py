"""Every option of QEMU's command line, and what becomes of it here: the one place that says so.

An option is honoured, or harmless (nothing that the guest or the host could see follows from it here, or the
line only asks for what is so anyway), or refused.  Of an option with settings each setting is declared, too;
one that is not is refused by its name.  ``docs/qemu.md`` has a table made of this one (:func:`markdown`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final


class Verdict(enum.Enum):
    """What becomes of an option or a setting."""

    HONOURED = "honoured"
    HARMLESS = "harmless"
    REFUSED = "refused"


YES, FREE, NO = Verdict.HONOURED, Verdict.HARMLESS, Verdict.REFUSED


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, or the option itself.

    Args:
        name: as QEMU has it; with ``*`` at the end all that begin so.
        verdict: see :class:`Verdict`.
        words: why, or what to do instead.
        values: all that are accepted, if that matters; others are refused with ``words``.
    """

    name: str
    verdict: Verdict = YES
    words: str = ""
    values: tuple[str, ...] = ()

    def means(self, name: str) -> bool:
        """Whether it is about the setting ``name``."""
        return name == self.name or (self.name.endswith("*") and name.startswith(self.name[:-1]))


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or a kind of an option (a driver of ``-device``).

    Args:
        name: without the dash.
        verdict, words: of the option as a whole.
        argument: whether a word follows.
        implied: the key of the argument's first word; None if the argument is a text and no list.
        kind: the key that says which of ``kinds`` it is.
        settings: what may be set.
        kinds: of an option with kinds: each with settings of its own, beside ``settings``.
    """

    name: str
    verdict: Verdict = YES
    words: str = ""
    argument: bool = True
    implied: str | None = None
    kind: str = ""
    settings: tuple[Setting, ...] = ()
    kinds: tuple[Option, ...] = ()

    def setting(self, name: str) -> Setting | None:
        """What is declared of the setting ``name``; None: nothing."""
        return next((each for each in self.settings if each.means(name)), None)

    def of_kind(self, name: str) -> Option | None:
        """The kind ``name``; None: it is not declared."""
        return next((each for each in self.kinds if name in each.name.split()), None)


def _all(verdict: Verdict, names: str, words: str = "") -> tuple[Setting, ...]:
    return tuple(Setting(name, verdict, words) for name in names.split())


ON_OFF: Final = ("on", "off", "yes", "no", "true", "false", "y", "n")
_OFF: Final = ("off", "no", "false", "n")
_ID: Final = (Setting("id"),)
_OURS: Final = "how it is done is ours"
_PCI: Final = (
    Setting("id"),
    Setting("addr", YES, "the device's number on bus 0"),
    Setting("bus", FREE, "every device is on bus 0: there are no bridges"),
    *_all(
        FREE,
        "disable-legacy disable-modern iommu_platform iommu-platform packed romfile rombar ats ioeventfd "
        "page-per-vq num-queues queue-size vectors multifunction event_idx indirect_desc "
        "queue-set-event notify_on_empty x-* hotplugged failover aer disable-legacy any_layout",
        "the device is a modern one behind an IOMMU, as a TD needs it",
    ),
)
_INSTEAD_DISK: Final = "give the disk as -drive if=virtio or -device virtio-blk-pci"
_INSTEAD_NET: Final = "give -netdev user and -device virtio-net-pci"
_NO_DISPLAY: Final = "a TD has no display here: give -nographic, or -vga none -display none"
_NO_MIGRATION: Final = "a TD cannot be saved or migrated here"
_SIZES: Final = (
    "size share prealloc merge dump policy host-nodes* reserve prealloc-threads x-* hugetlb hugetlbsize seal"
)

_DEVICES: Final = (
    Option(
        "virtio-blk-pci virtio-blk virtio-blk-pci-non-transitional",
        settings=(
            *_PCI,
            *_all(YES, "drive serial bootindex"),
            *_all(
                FREE,
                "write-cache iothread scsi config-wce discard write-zeroes logical_block_size "
                "physical_block_size share-rw werror rerror backend_defaults",
                _OURS,
            ),
        ),
    ),
    Option(
        "virtio-net-pci virtio-net virtio-net-pci-non-transitional",
        settings=(
            *_PCI,
            *_all(YES, "netdev mac bootindex"),
            *_all(
                FREE,
                "mq host_mtu mrg_rxbuf csum guest_csum gso tx rx_queue_size tx_queue_size speed duplex rss "
                "ctrl_vq guest_tso4 guest_tso6 guest_ecn guest_ufo host_tso4 host_tso6 host_ecn host_ufo",
                _OURS,
            ),
        ),
    ),
    Option(
        "vhost-vsock-pci vhost-vsock vhost-vsock-pci-non-transitional",
        words="programs on the host connect to a Unix socket, swtdx-vsock-CID.sock, and say CONNECT PORT",
        settings=(*_PCI, Setting("guest-cid"), Setting("vhostfd", FREE, "vhost is not used")),
    ),
    Option(
        "virtio-rng-pci virtio-rng virtio-rng-pci-non-transitional",
        settings=(
            *_PCI,
            Setting("rng", FREE, "random bytes come from the host's kernel"),
            *_all(FREE, "max-bytes period", "the device gives what is asked for"),
        ),
    ),
    Option(
        "virtio-9p-pci virtio-9p virtio-9p-pci-non-transitional",
        settings=(*_PCI, *_all(YES, "fsdev mount_tag")),
    ),
    Option(
        "virtio-serial-pci virtio-serial virtio-serial-pci-non-transitional",
        settings=(*_PCI, Setting("max_ports", FREE, "there are as many ports as are used")),
    ),
    Option(
        "virtconsole",
        words="the first one, hvc0",
        settings=(*_ID, Setting("chardev"), *_all(FREE, "name nr bus", "it is port 0")),
    ),
    Option(
        "virtserialport",
        words="the guest's output goes to the chardev; there is no input",
        settings=(
            *_ID,
            *_all(YES, "chardev name"),
            *_all(FREE, "nr bus", "ports are numbered in the line's order"),
        ),
    ),
    Option(
        "isa-debugcon",
        settings=(
            *_ID,
            Setting("iobase", YES, "0x402 only"),
            Setting("chardev"),
            Setting("readback", FREE, "it is 0xe9"),
        ),
    ),
    Option(
        "isa-serial",
        words="the first one, COM1",
        settings=(
            *_ID,
            Setting("chardev"),
            *_all(FREE, "index iobase irq wakeup", "it is COM1, without an interrupt"),
        ),
    ),
    Option(
        "pcie-root-port pcie-pci-bridge pcie-root-port-bridge pxb-pcie ioh3420 pci-bridge i82801b11-bridge "
        "x3130-upstream xio3130-downstream",
        FREE,
        "there are no bridges: devices behind one are on bus 0",
        settings=_all(FREE, "*"),
    ),
    Option(
        "virtio-balloon-pci virtio-balloon virtio-mem-pci virtio-iommu-pci virtio-keyboard-pci "
        "virtio-tablet-pci "
        "virtio-mouse-pci qemu-xhci nec-usb-xhci usb-tablet usb-kbd usb-mouse usb-hub ich9-usb-ehci1 "
        "ich9-usb-uhci1 ich9-usb-uhci2 ich9-usb-uhci3 piix3-usb-uhci pvpanic pvpanic-pci i6300esb iTCO "
        "vmcoreinfo vmgenid nvdimm intel-hda hda-duplex hda-output hda-micro",
        FREE,
        "left out: the guest does not see one, and need not",
        settings=_all(FREE, "*"),
    ),
    Option(
        "virtio-scsi-pci virtio-scsi scsi-hd scsi-cd scsi-block scsi-generic ide-hd ide-cd nvme nvme-ns ahci "
        "ich9-ahci usb-storage sdhci-pci megasas lsi",
        NO,
        _INSTEAD_DISK,
    ),
    Option(
        "vhost-user-blk-pci vhost-user-fs-pci vhost-user-net-pci vhost-user-vsock-pci vhost-user-scsi-pci",
        NO,
        "a vhost-user back end would need the TD's private memory; give the virtio device of QEMU's own",
    ),
    Option("e1000 e1000e rtl8139 vmxnet3 ne2k_pci pcnet igb usb-net i82550 i82559c", NO, _INSTEAD_NET),
    Option(
        "VGA virtio-vga virtio-gpu-pci virtio-gpu qxl qxl-vga bochs-display cirrus-vga vmware-svga ramfb",
        NO,
        _NO_DISPLAY,
    ),
    Option("vfio-pci vfio-pci-nohotplug vfio-ap", NO, "there is no passthrough of devices (TDX Connect)"),
    Option("tpm-crb tpm-tis", NO, "there is no TPM; a TD's measurements are its RTMRs"),
    Option("intel-iommu amd-iommu", NO, "there is no virtual IOMMU; leave the device out"),
)

_FILES: Final = _all(
    FREE,
    "cache* aio detect-zeroes discard auto-read-only throttling* l2-cache-size locking "
    "file.locking file.aio copy-on-read media index werror rerror bps* iops* force-share "
    "lazy-refcounts file.auto-read-only file.discard file.cache*",
    _OURS,
)
_DRIVE: Final = (
    *_all(
        YES, "file if id format readonly read-only snapshot serial file.filename filename driver file.driver"
    ),
    Setting("unit", YES, "of if=pflash"),
    *_FILES,
    *_all(
        NO, "backing* encrypt* key-secret", "swtdx's disks are plain images: make one with qemu-img convert"
    ),
)
_BLOCK: Final = (
    *_all(YES, "node-name file file.driver file.filename filename read-only file.read-only"),
    *_FILES,
)
_CHARDEV_OURS: Final = (
    Setting("id"),
    Setting("logfile", NO, "give file: as the chardev"),
    Setting("logappend", FREE),
    Setting("mux", YES),
)
_CHARDEVS: Final = (
    Option("null", settings=_CHARDEV_OURS),
    Option("stdio", settings=(*_CHARDEV_OURS, Setting("signal", FREE, "Ctrl-A x leaves"))),
    Option(
        "file",
        settings=(
            *_CHARDEV_OURS,
            Setting("path"),
            Setting("append"),
            Setting("input-path", NO, "a file is for output"),
        ),
    ),
    Option(
        "socket",
        settings=(
            *_CHARDEV_OURS,
            *_all(YES, "path server wait"),
            *_all(
                NO,
                "host port fd tls-creds websocket telnet abstract",
                "only Unix sockets that the line names by a path: path=FILE,server=on,wait=off",
            ),
            *_all(FREE, "nodelay delay reconnect reconnect-ms ipv4 ipv6 to tight"),
        ),
    ),
    Option(
        "pty pipe serial parallel udp vc msmouse braille spicevmc spiceport ringbuf hub console tty dbus "
        "qemu-vdagent testdev wctablet",
        NO,
        "give null, stdio, file or a Unix socket",
    ),
)

_NETDEVS: Final = (
    Option(
        "user",
        words="by passt, which must be installed",
        settings=(
            *_ID,
            Setting("hostfwd"),
            *_all(FREE, "ipv4 ipv6 ipv4-* ipv6-*", "passt decides"),
            *_all(
                NO,
                "net host dhcpstart dns restrict hostname tftp bootfile smb smbserver guestfwd dnssearch "
                "domainname tftp-server-name",
                "passt gives the guest the host's own addresses and name servers",
            ),
            *_all(YES, "mac model netdev macaddr"),
        ),
    ),
    Option("none", settings=()),
    Option(
        "hubport",
        words="without another end: a cable that leads nowhere",
        settings=(*_ID, Setting("hubid", FREE, "there is one hub")),
    ),
    Option(
        "tap bridge l2tpv3 vde vhost-user vhost-vdpa netmap af-xdp passt dgram stream socket vmnet-host "
        "vmnet-shared vmnet-bridged",
        NO,
        "give -netdev user (with hostfwd for ports), which needs no root",
    ),
)

_OBJECTS: Final = (
    Option(
        "tdx-guest",
        settings=(
            *_ID,
            *_all(YES, "mrconfigid mrowner mrownerconfig"),
            Setting("attributes", YES, "as a number"),
            Setting("sept-ve-disable"),
            *_all(
                YES,
                "quote-generation-socket.type quote-generation-socket.cid quote-generation-socket.port "
                "quote-generation-socket.path",
            ),
            Setting("quote-generation-service", YES, "of earlier QEMUs: vsock:CID:PORT or unix:PATH"),
            Setting("debug", YES, "of earlier QEMUs"),
        ),
    ),
    Option(
        "memory-backend-ram memory-backend-memfd memory-backend-file memory-backend-shm",
        settings=(
            *_ID,
            Setting("size", YES, "it must be what -m says"),
            *_all(
                FREE,
                _SIZES.replace("size ", "", 1) + " mem-path discard-data align pmem readonly rom offset",
                "a TD's private memory is not in it",
            ),
        ),
    ),
    Option(
        "rng-random rng-builtin rng-egd",
        FREE,
        "random bytes come from the host's kernel",
        settings=_all(FREE, "*"),
    ),
    Option(
        "iothread throttle-group thread-context main-loop event-loop can-bus",
        FREE,
        _OURS,
        settings=_all(FREE, "*"),
    ),
    Option(
        "secret tls-creds-x509 tls-creds-anon tls-creds-psk authz-simple authz-list pr-manager-helper "
        "cryptodev-backend cryptodev-backend-builtin input-linux filter-dump filter-mirror",
        NO,
        "there is nothing here that would use it; leave it out",
    ),
    Option(
        "sev-guest sev-snp-guest igvm-cfg s390-pv-guest pef-guest",
        NO,
        "this is another technology: swtdx starts Intel TDs (-object tdx-guest,id=tdx0)",
    ),
)

OPTIONS: Final = (
    # ------------------------------------------------------------------ machine
    Option(
        "machine",
        implied="type",
        settings=(
            Setting("type", YES, "q35: -machine q35,confidential-guest-support=ID", ("q35", "pc-q35*")),
            *_all(YES, "confidential-guest-support memory-encryption accel pflash0 pflash1 memory-backend"),
            Setting(
                "kernel-irqchip",
                FREE,
                "interrupts are as with split, which is what a TD has",
                ("split", "on"),
            ),
            Setting("acpi", FREE, "a TD's processors are started by ACPI's mailbox", ("on", "yes", "auto")),
            Setting("smm", FREE, "a TD has no SMM: smm=off", (*_OFF, "auto")),
            *_all(
                FREE,
                "hpet pit pic vmport usb graphics nvdimm sata smbus i8042 mem-merge dump-guest-core "
                "hmat kernel-shadow* suppress-vmdesc default-bus-bypass-iommu aux-ram-share "
                "smbios-entry-point-type "
                "pcspk-audiodev fd-bootchk",
                "the board has what a TD needs",
            ),
            *_all(NO, "firmware kernel initrd append dtb igvm-cfg", "give -bios, -kernel, -initrd, -append"),
        ),
    ),
    Option(
        "cpu",
        words="host and max are Sierra Forest; SapphireRapids and EmeraldRapids are those parts",
        implied=None,
        settings=(
            Setting("tsc-frequency"),
            Setting("tsc-freq"),
            Setting("pmu", FREE, "a TD has no performance monitoring here: pmu=off", _OFF),
            *_all(
                FREE,
                "migratable host-phys-bits* phys-bits kvm* +kvm* -kvm* l3-cache host-cache-info "
                "check enforce x-* +x2apic x2apic +invtsc invtsc +tsc-deadline tsc-deadline hv-* level* "
                "guest-phys-bits topoext cache*",
                "the TDX Module decides what a TD's CPUID shows",
            ),
            Setting("-*", YES, "where the part has not got the feature anyway"),
            Setting("+*", NO, "a TD's features are the part's and the module's; leave it out"),
        ),
    ),
    Option(
        "accel",
        words="kvm: TDs run on swtdx's own TDX machine; KVM is not used",
        implied="accel",
        settings=(
            Setting("accel", FREE, "in QEMU only KVM has TDs", ("kvm",)),
            *_all(FREE, "kernel-irqchip dirty-ring-size notify-vmexit notify-window eager-split-size device"),
        ),
    ),
    Option("enable-kvm", FREE, "TDs run on swtdx's own TDX machine", argument=False),
    Option(
        "m",
        words="one size; no hot-plug",
        implied="size",
        settings=(Setting("size"), *_all(FREE, "slots maxmem", "no memory can be added later")),
    ),
    Option(
        "smp",
        implied="cpus",
        settings=(
            Setting("cpus"),
            *_all(FREE, "maxcpus", "no vCPU can be added later"),
            *_all(YES, "sockets dies clusters modules cores threads drawers books"),
        ),
    ),
    Option(
        "numa",
        implied="type",
        settings=(
            Setting("type", YES, "one node", ("node", "cpu", "dist")),
            *_all(YES, "nodeid memdev mem"),
            *_all(
                FREE,
                "cpus initiator node-id socket-id core-id thread-id src dst val die-id",
                "there is one node",
            ),
        ),
    ),
    Option(
        "name",
        words="in messages",
        implied="guest",
        settings=(Setting("guest"), *_all(FREE, "process debug-threads")),
    ),
    Option("uuid", words="in SMBIOS"),
    # ------------------------------------------------------------------ firmware and kernel
    Option("bios", words="a TDVF image"),
    Option("pflash", NO, "a TD's firmware is given by -bios: KVM has no read-only memory for TDs"),
    Option("kernel"),
    Option("initrd"),
    Option("append"),
    Option("dtb", NO, "x86 has no device trees"),
    Option("fw_cfg", implied="name", settings=_all(YES, "name file string")),
    Option(
        "smbios",
        words="types 0, 1, 2, 3, 4, 11 and 17",
        settings=(
            Setting("type"),
            Setting("*", YES),
        ),
    ),
    Option("acpitable", NO, "the tables are the board's"),
    Option(
        "boot",
        implied="order",
        settings=(
            Setting("menu", YES, "waits splash-time ms for a key"),
            Setting("splash-time"),
            Setting("strict", FREE, "firmware decides"),
            Setting("order", FREE, "OVMF goes by bootindex"),
            Setting("once", FREE, "OVMF goes by bootindex"),
            *_all(NO, "splash", "there is no display"),
            Setting("reboot-timeout", FREE, "OVMF has none"),
        ),
    ),
    Option("option-rom", NO, "TDVF starts no option ROMs"),
    # ------------------------------------------------------------------ objects and devices
    Option("object", implied="qom-type", kind="qom-type", kinds=_OBJECTS),
    Option("device", implied="driver", kind="driver", kinds=_DEVICES),
    Option("drive", implied="", words="if=virtio, or if=none for a -device", settings=_DRIVE),
    Option(
        "blockdev",
        implied="driver",
        kind="driver",
        kinds=(
            Option("file host_device raw qcow2 vmdk vhdx vdi vpc", settings=_BLOCK),
            Option(
                "nbd rbd iscsi https http ssh nvme null-co null-aio quorum blkdebug throttle luks gluster "
                "nfs "
                "virtio-blk-vhost-vdpa io_uring",
                NO,
                "images are files: raw, qcow2, vmdk, vhdx, vdi, vpc",
            ),
        ),
    ),
    Option("snapshot", words="for every disk", argument=False),
    Option("hda", NO, _INSTEAD_DISK),
    Option("hdb", NO, _INSTEAD_DISK),
    Option("hdc", NO, _INSTEAD_DISK),
    Option("hdd", NO, _INSTEAD_DISK),
    Option("cdrom", NO, _INSTEAD_DISK),
    Option("sd", NO, _INSTEAD_DISK),
    Option("mtdblock", NO, _INSTEAD_DISK),
    Option("fda", NO, "there is no floppy disk"),
    Option("fdb", NO, "there is no floppy disk"),
    Option("iscsi", NO, _INSTEAD_DISK),
    Option(
        "fsdev",
        implied="fsdriver",
        settings=(
            Setting("fsdriver", YES, "local", ("local",)),
            *_all(YES, "id path readonly"),
            *_all(
                FREE,
                "security_model writeout fmode dmode multidevs throttling*",
                "files are made as the user who runs swtdx",
            ),
        ),
    ),
    Option(
        "virtfs",
        implied="fsdriver",
        settings=(
            Setting("fsdriver", YES, "local", ("local",)),
            *_all(YES, "id path mount_tag readonly"),
            *_all(
                FREE,
                "security_model writeout fmode dmode multidevs",
                "files are made as the user who runs swtdx",
            ),
        ),
    ),
    Option("netdev", implied="type", kind="type", kinds=_NETDEVS),
    Option("nic", implied="type", kind="type", kinds=_NETDEVS),
    Option(
        "net",
        implied="type",
        kind="type",
        words="none only; -nic and -netdev are what came after it",
        kinds=(
            Option("none", settings=()),
            Option("nic user tap bridge socket vde l2tpv3", NO, _INSTEAD_NET),
        ),
    ),
    # ------------------------------------------------------------------ what the user sees
    Option("nographic", words="the serial port is the terminal, where Ctrl-A x leaves", argument=False),
    Option(
        "display", NO, _NO_DISPLAY, implied="type", settings=(Setting("type", YES, _NO_DISPLAY, ("none",)),)
    ),
    Option("vga", NO, _NO_DISPLAY, implied="type", settings=(Setting("type", YES, _NO_DISPLAY, ("none",)),)),
    Option("vnc", NO, _NO_DISPLAY, implied="type", settings=(Setting("type", YES, _NO_DISPLAY, ("none",)),)),
    Option("spice", NO, _NO_DISPLAY),
    Option("full-screen", NO, _NO_DISPLAY, argument=False),
    Option("k", FREE, "there is no keyboard"),
    Option("audio", FREE, "there is no sound"),
    Option("audiodev", FREE, "there is no sound"),
    Option("echr", NO, "Ctrl-A is the key that leaves"),
    Option("usb", FREE, "left out: the guest does not see one", argument=False),
    Option("usbdevice", FREE, "left out: the guest does not see one"),
    Option(
        "serial",
        words="one port: stdio, mon:stdio, file:PATH, unix:PATH,server=on,wait=off, chardev:ID, null, none",
    ),
    Option("parallel", words="none only"),
    Option("debugcon", words="what firmware prints at port 0x402; same forms as -serial"),
    Option("chardev", implied="backend", kind="backend", kinds=_CHARDEVS),
    Option("monitor", words="none; or a chardev or Unix socket: quit, info status, system_powerdown"),
    Option("qmp", words="Unix sockets: qmp_capabilities, query-status, cont, quit, ..."),
    Option("qmp-pretty", words="as -qmp"),
    Option(
        "mon",
        implied="chardev",
        settings=(*_all(YES, "chardev mode"), Setting("pretty", FREE), Setting("id", FREE)),
    ),
    # ------------------------------------------------------------------ the process
    Option("pidfile"),
    Option("daemonize", argument=False),
    Option("S", words="with a monitor or -qmp: waits for cont", argument=False),
    Option("no-reboot", words="without it a restart makes a new TD", argument=False),
    Option("no-shutdown", words="with a monitor or -qmp: the process waits for quit", argument=False),
    Option(
        "action",
        implied="",
        settings=(
            Setting("reboot", YES, "", ("reset", "shutdown")),
            Setting("shutdown", YES, "", ("poweroff", "pause")),
            *_all(FREE, "panic watchdog", "the run ends, and says why"),
        ),
    ),
    Option("watchdog-action", FREE, "there is no watchdog"),
    Option("nodefaults", words="no default devices; there are none beside the serial port", argument=False),
    Option("no-user-config", FREE, "swtdx reads no configuration of QEMU's", argument=False),
    Option("readconfig", words="a file with [sections]"),
    Option("writeconfig", NO, "the line itself is what to keep"),
    Option(
        "global",
        settings=(
            *_all(
                FREE,
                "ICH9-LPC.disable_s3 ICH9-LPC.disable_s4 PIIX4_PM.disable_s3 PIIX4_PM.disable_s4",
                "a TD has neither S3 nor S4",
            ),
            *_all(
                FREE,
                "kvm-pit.lost_tick_policy mc146818rtc.lost_tick_policy ICH9-LPC.noreboot "
                "ICH9-LPC.acpi-pci-hotplug* "
                "virtio-*",
                "the board has what a TD needs",
            ),
            Setting("isa-debugcon.iobase", YES, "0x402 only", ("0x402", "1026")),
            Setting("driver.cfi.pflash01.property", FREE),
            Setting("cfi.pflash01*", FREE, "there is no flash"),
        ),
    ),
    Option("set", NO, "write the setting where the device is given"),
    Option("sandbox", FREE, "the processes of QEMU that swtdx starts run guest code only"),
    Option("msg", FREE, "messages have no times"),
    Option("compat", FREE, ""),
    Option(
        "rtc",
        implied="",
        settings=(
            Setting("base", YES, "utc", ("utc",)),
            *_all(FREE, "clock driftfix", "the clock is the host's"),
        ),
    ),
    Option("overcommit", FREE, "pages come as the guest uses them"),
    Option("mem-path", FREE, "a TD's private memory is not in files"),
    Option("mem-prealloc", FREE, "pages come as the guest uses them", argument=False),
    Option("runas", NO, "run swtdx as that user"),
    Option("user", NO, "run swtdx as that user"),
    Option("chroot", NO, "run swtdx there"),
    Option("add-fd", NO, "give paths instead of descriptors"),
    Option("L", FREE, "nothing of QEMU's data is used"),
    Option("no-fd-bootchk", FREE, "there is no floppy disk", argument=False),
    Option("no-hpet", FREE, "there is no HPET", argument=False),
    Option("no-acpi", NO, "a TD's processors are started by ACPI's mailbox", argument=False),
    Option("d", NO, "see `swtdx run --trace`"),
    Option("D", FREE, "there is nothing of -d to be kept"),
    Option("dfilter", NO, "see `swtdx run --trace`"),
    Option("trace", NO, "see `swtdx run --trace`"),
    Option("plugin", NO, "see `swtdx run --trace`"),
    Option("gdb", NO, "a TD has no gdb server here"),
    Option("s", NO, "a TD has no gdb server here", argument=False),
    Option("seed", NO, "QEMU's seed is not the machine's; see `swtdx run --seed`"),
    Option("icount", NO, "KVM has none either"),
    Option("singlestep", NO, "KVM has none either", argument=False),
    Option("one-insn-per-tb", NO, "KVM has none either", argument=False),
    Option("preconfig", NO, "the machine is made at once", argument=False),
    Option("incoming", NO, _NO_MIGRATION),
    Option("loadvm", NO, _NO_MIGRATION),
    Option("only-migratable", NO, _NO_MIGRATION, argument=False),
    Option("dump-vmstate", NO, _NO_MIGRATION),
    Option("tpmdev", NO, "there is no TPM; a TD's measurements are its RTMRs"),
    Option("semihosting", NO, "ARM only", argument=False),
    Option("async-teardown", FREE, "memory goes with the process", argument=False),
    Option("enable-sync-profile", FREE, "", argument=False),
    Option("xen-domid", NO, "there is no Xen here"),
    Option("xen-attach", NO, "there is no Xen here", argument=False),
    Option("balloon", FREE, "there is no balloon"),
)

#: Every option by its names.
BY_NAME: Final = {option.name: option for option in OPTIONS} | {
    "M": next(option for option in OPTIONS if option.name == "machine")
}


def markdown() -> str:
    """The table for the documentation."""
    lines = ["| Option | | |", "|---|---|---|"]
    for option in OPTIONS:
        lines += _rows(f"-{option.name}", option)
    return "\n".join(lines) + "\n"


def _rows(title: str, option: Option) -> Iterator[str]:
    names = f"`{title}`"
    own = [each for each in option.settings if not (option.verdict is each.verdict is NO)]
    yield f"| {names} | {option.verdict.value} | {option.words} |"
    for verdict, words, group in _grouped(own):
        shown = ", ".join(f"`{name}`" for name in group)
        if shown != "`*`":
            yield f"| {shown} | {verdict.value} | {words} |"
    for kind in option.kinds:
        yield from _rows(f"{title} {' '.join(kind.name.split())}", kind)


def _grouped(settings: Iterable[Setting]) -> Iterator[tuple[Verdict, str, list[str]]]:
    """Settings with the same verdict and words in one."""
    found: dict[tuple[Verdict, str], list[str]] = {}
    for each in settings:
        values = f"={'/'.join(each.values)}" if each.values and each.values != ON_OFF else ""
        found.setdefault((each.verdict, each.words), []).append(f"{each.name}{values}")
    for (verdict, words), names in found.items():
        yield verdict, words, names

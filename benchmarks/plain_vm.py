"""What a TD is compared with: a plain VM on stock QEMU with the devices that ``swtdx run --exec`` gives."""

from __future__ import annotations

from pathlib import Path

from swtdx.guests.guest import Guest
from swtdx.guests.initramfs import Exec, default_cmdline


def plain_vm(guest: Guest, initrd: Path, job: Exec, memory_mib: int, vcpus: int = 1) -> list[str]:
    """The command: the same kernel, initrd and command line without any of our machinery.

    What ``job`` prints goes to standard output, by the channels of :mod:`swtdx.guests.exec_channels`.
    """
    arguments = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", f"{memory_mib}M", "-smp", str(vcpus),
        "-kernel", str(guest.kernel), "-initrd", str(initrd), "-append", default_cmdline(job),
        "-display", "none", "-nodefaults", "-no-reboot", "-device", "virtio-serial-pci",
        "-chardev", "null,id=console", "-device", "virtconsole,chardev=console",
    ]  # fmt: skip
    # A null back end would count as closed, and the guest would wait for it to open.
    for name, path in (("out", "/dev/stdout"), ("err", "/dev/null"), ("ctl", "/dev/null")):
        arguments += ["-chardev", f"file,id={name},path={path}"]
        arguments += ["-device", f"virtserialport,chardev={name},name=swtdx.{name}"]
    return arguments

"""A Debian on a disk, made by Debian's own tools: no root, nothing is mounted.

The disk has a GPT with an EFI system partition (systemd-boot, kernel and initrd) and an ext4 root with
systemd and sshd.  It is made once, and kept beside what else tests fetch.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cache import FOLDER
from tests.fetching import cannot_fetch

MIB = 1 << 20
#: Changes with what is on the disk.
EDITION = 1
BLOB_BYTES = 200 * MIB
_ESP_MIB, _ROOT_MIB = 64, 900
#: What it takes, and in which package of Debian's it is.
TOOLS = {
    "mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "mkfs.vfat": "dosfstools", "mcopy": "mtools",
    "sfdisk": "fdisk", "qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils", "passt": "passt",
    "ssh": "openssh-client", "ssh-keygen": "openssh-client",
}  # fmt: skip
_PACKAGES = "systemd-sysv,openssh-server,initramfs-tools,zstd,systemd-boot-efi"
_CMDLINE = "root=/dev/vda2 rw console=hvc0 quiet systemd.show_status=no"
_SUITES = (
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://deb.debian.org/debian-security bookworm-security main",
)
#: Units that do nothing here but take time.
_MASKED = (
    "getty@tty1.service", "e2scrub_reap.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer", "fstrim.timer", "systemd-timesyncd.service", "systemd-pstore.service",
)  # fmt: skip
#: For a boot without systemd: says what it finds and switches off.
_CHECK = """#!/bin/sh
mount -t proc proc /proc
echo "=== check"
sha256sum /blob | cut -d" " -f1
cat /kept
echo again >>/kept
sync
mount -t sysfs sysfs /sys
echo o >/proc/sysrq-trigger
sleep 60
"""
#: A perl for each end of a virtio socket: perl-base is all that a minimal Debian has.
_SOCKETS = """#!/usr/bin/perl
use strict;
use constant AF_VSOCK => 40;
sub address { pack("S S L L x4", AF_VSOCK, 0, $_[0], $_[1]) }
my ($do, $port) = @ARGV;
$| = 1;
socket(my $s, AF_VSOCK, 1, 0) or die "socket: $!";
if ($do eq "connect") {
    connect($s, address($port, 2)) or die "connect: $!";
    syswrite($s, "from the guest\\n");
    print scalar <$s>;
} else {
    bind($s, address($port, 0xFFFFFFFF)) or die "bind: $!";
    listen($s, 4) or die "listen: $!";
    accept(my $c, $s) or die "accept: $!";
    my $line = <$c>;
    syswrite($c, uc $line);
}
"""


@dataclass(frozen=True)
class Debian:
    """The files: a disk, the kernel and initrd on it, a key for root's ssh, and the hash of /blob."""

    folder: Path
    blob: str

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"

    @property
    def key(self) -> Path:
        return self.folder / "key"


def debian(release: str) -> Debian:
    """The Debian with the kernel ``release``; the test is skipped where it cannot be made."""
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        pytest.skip(f"a disk with Debian takes {', '.join(missing)}: swtdx setup --tests")
    folder = FOLDER / "debian" / f"{release}-{EDITION}"
    if not (folder / "blob.sha256").exists():
        new = folder.with_name(f".new-{os.getpid()}")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            _make(new, release)
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return Debian(folder, (folder / "blob.sha256").read_text())


def _run(*words: str | Path, **more: Any) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, **more)
    if done.returncode:
        cannot_fetch(f"{words[0]}: {done.stderr[-600:]}")


def _make(folder: Path, release: str) -> None:
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key")
    root = folder / "root.ext4"
    for name, text in (("check", _CHECK), ("vsock", _SOCKETS), ("customize", _customize(release, root))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    _run(
        "mmdebstrap", "--variant=minbase", "--skip=check/qemu",
        f"--include={_PACKAGES},linux-image-{release}", f'--customize-hook={folder}/customize "$1"',
        "bookworm", "/dev/null", *_SUITES,
        env={**os.environ, "FOLDER": str(folder), "TMPDIR": str(folder)},
    )  # fmt: skip
    _esp(folder)
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate((_ESP_MIB + _ROOT_MIB + 2) * MIB)
    parts = f"start=1MiB,size={_ESP_MIB}MiB,type=U\nstart={_ESP_MIB + 1}MiB,size={_ROOT_MIB}MiB,type=L\n"
    _run("sfdisk", "-q", disk, input=f"label: gpt\n{parts}")
    for part, at in (("esp.img", 1), ("root.ext4", _ESP_MIB + 1)):
        _run("dd", f"if={folder / part}", f"of={disk}", "bs=1M", f"seek={at}", "conv=notrunc,sparse")
        (folder / part).unlink()


def _customize(release: str, root: Path) -> str:
    """What mmdebstrap runs with the new system's folder, as its root user."""
    masked = "\n".join(f"ln -sf /dev/null $1/etc/systemd/system/{unit}" for unit in _MASKED)
    return f"""#!/bin/sh
set -eu
{masked}
printf '[Match]\\nName=e*\\n[Network]\\nDHCP=yes\\n' >$1/etc/systemd/network/20-wired.network
ln -sf /lib/systemd/system/systemd-networkd.service $1/etc/systemd/system/multi-user.target.wants/
mkdir -p $1/root/.ssh; cp $FOLDER/key.pub $1/root/.ssh/authorized_keys; chmod 700 $1/root/.ssh
cp $FOLDER/check $FOLDER/vsock $1/usr/local/bin/
echo first >$1/kept
# The initrd finds the root file system and has nothing else: it is measured, copied and unpacked at every
# boot.
sed -i 's/^MODULES=.*/MODULES=list/; s/^COMPRESS=.*/COMPRESS=zstd/' $1/etc/initramfs-tools/initramfs.conf
printf 'virtio_blk\\nvirtio_pci\\next4\\n' >>$1/etc/initramfs-tools/modules
chroot $1 update-initramfs -u -k {release}
cp $1/usr/lib/systemd/boot/efi/systemd-bootx64.efi $FOLDER/boot.efi
cp $1/boot/vmlinuz-{release} $FOLDER/vmlinuz; cp $1/boot/initrd.img-{release} $FOLDER/initrd
head -c {BLOB_BYTES} /dev/urandom >$1/blob
sha256sum <$1/blob | cut -d' ' -f1 | tr -d '\\n' >$FOLDER/blob.sha256
truncate -s {_ROOT_MIB}M {root}
# Without what is mounted below.
mkdir $FOLDER/plain; mount --bind $1 $FOLDER/plain
mkfs.ext4 -q -F -d $FOLDER/plain {root}
umount $FOLDER/plain; rmdir $FOLDER/plain
"""


def _esp(folder: Path) -> None:
    esp = folder / "esp.img"
    with esp.open("wb") as file:
        file.truncate(_ESP_MIB * MIB)
    _run("mkfs.vfat", "-n", "ESP", esp)
    _run("mmd", "-i", esp, "::EFI", "::EFI/BOOT", "::loader", "::loader/entries")
    entry = f"title Debian\nlinux /vmlinuz\ninitrd /initrd\noptions {_CMDLINE}\n"
    (folder / "loader.conf").write_text("timeout 0\n")
    (folder / "debian.conf").write_text(entry)
    for source, target in (
        (folder / "boot.efi", "EFI/BOOT/BOOTX64.EFI"), (folder / "loader.conf", "loader/loader.conf"),
        (folder / "debian.conf", "loader/entries/debian.conf"), (folder / "vmlinuz", "vmlinuz"),
        (folder / "initrd", "initrd"),
    ):  # fmt: skip
        _run("mcopy", "-i", esp, source, f"::{target}")


def digest(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()

"""Command lines as the tools that people start TDs with make them, written anew, in each tool's style.

Each has what the machine that it describes must be.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Final

DIGEST: Final = bytes(range(48))
DIGEST_BASE64: Final = base64.b64encode(DIGEST).decode()


@dataclass(frozen=True)
class RealLine:
    """A line, shell-quoted, and members of the machine that it describes."""

    name: str
    text: str
    wants: dict[str, Any] = field(default_factory=dict)
    #: What must be among the things that are harmless.
    harmless: tuple[str, ...] = ()


#: {BIOS}, {KERNEL}, {INITRD} and {DISK} are files that there are.
LINES: Final = (
    RealLine(
        # Intel's guide for Linux hosts.
        "guide",
        """qemu-system-x86_64 -accel kvm -m 4G -smp 2 -name td,process=td,debug-threads=on
        -cpu host,pmu=off,-kvm-steal-time -nographic -nodefaults
        -object '{"qom-type":"tdx-guest","id":"tdx","quote-generation-socket":
                  {"type":"vsock","cid":"2","port":"4050"}}'
        -machine q35,kernel_irqchip=split,confidential-guest-support=tdx,hpet=off -bios {BIOS}
        -drive file={DISK},if=none,id=virtio-disk0,format=raw -device virtio-blk-pci,drive=virtio-disk0
        -netdev user,id=nic0,hostfwd=tcp::10022-:22 -device virtio-net-pci,netdev=nic0
        -device vhost-vsock-pci,guest-cid=3 -serial stdio -pidfile /tmp/td.pid""",
        {"name": "td", "memory": 4 << 30, "vcpus": 2, "quotes": "vsock:2:4050", "serial.kind": "stdio",
         "disks": [("raw", 1)], "forwards": [("0.0.0.0", 10022, 22)], "cid": 3},
        ("-cpu pmu=off", "-machine kernel-irqchip=split", "debug-threads"),
    ),
    RealLine(
        # Ubuntu's scripts, with the older way to name the quoting service.
        "run_td",
        """qemu-system-x86_64 -accel kvm -cpu host -smp 16 -m 2G -nographic
        -object tdx-guest,id=tdx,quote-generation-service=vsock:2:4050
        -object memory-backend-ram,id=mem0,size=2G
        -machine q35,hpet=off,kernel_irqchip=split,memory-encryption=tdx,memory-backend=mem0
        -bios {BIOS} -nodefaults -vga none -daemonize -serial file:/tmp/td-guest.log
        -device virtio-net-pci,netdev=nic0_td -netdev user,id=nic0_td,hostfwd=tcp:127.0.0.1:10022-:22
        -drive file={DISK},if=none,id=virtio-disk0 -device virtio-blk-pci,drive=virtio-disk0
        -device vhost-vsock-pci,guest-cid=4 -pidfile /tmp/tdx-demo-td-pid.pid
        -monitor unix:/tmp/tdx.monitor,server=on,wait=off""",
        {"vcpus": 16, "memory": 2 << 30, "daemonize": True, "quotes": "vsock:2:4050", "cid": 4,
         "forwards": [("127.0.0.1", 10022, 22)], "serial.kind": "file"},
    ),
    RealLine(
        # libvirt's, without the descriptors that only libvirt has.
        "libvirt",
        """LC_ALL=C PATH=/usr/bin HOME=/var/lib/libvirt XDG_CACHE_HOME=/var/lib/.cache
        /usr/bin/qemu-system-x86_64 -name guest=tdx,debug-threads=on
        -machine pc-q35-10.1,usb=off,smm=off,kernel_irqchip=split,dump-guest-core=off
        -machine memory-backend=pc.ram,confidential-guest-support=lsec0,hpet=off,acpi=on
        -accel kvm -cpu host,migratable=off -bios {BIOS} -m size=2097152k
        -object '{"qom-type":"memory-backend-ram","id":"pc.ram","size":2147483648}'
        -overcommit mem-lock=off -smp 4,sockets=1,dies=1,clusters=1,cores=4,threads=1
        -uuid 0e7b9d4f-0c64-4f79-bd3a-a8f7e5d6a0f1 -display none -no-user-config -nodefaults
        -chardev socket,id=charmonitor,path=/tmp/libvirt.sock,server=on,wait=off
        -mon chardev=charmonitor,id=monitor,mode=control -rtc base=utc -no-shutdown -no-reboot -boot strict=on
        -kernel {KERNEL} -initrd {INITRD} -append 'console=ttyS0 root=/dev/vda1'
        -device '{"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0",
                  "multifunction":true,"addr":"0x2"}'
        -device '{"driver":"pcie-root-port","port":17,"chassis":2,"id":"pci.2",
                  "bus":"pcie.0","addr":"0x2.0x1"}'
        -blockdev '{"driver":"file","filename":"{DISK}","node-name":"libvirt-1-storage","read-only":false}'
        -blockdev '{"node-name":"libvirt-1-format","read-only":false,"driver":"raw",
                    "file":"libvirt-1-storage"}'
        -device '{"driver":"virtio-blk-pci","bus":"pci.1","addr":"0x0",
                  "drive":"libvirt-1-format","id":"virtio-disk0","bootindex":1}'
        -chardev file,id=charserial0,path=/tmp/serial.log,append=on
        -device '{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}'
        -audiodev '{"id":"audio1","driver":"none"}' -global ICH9-LPC.noreboot=off -watchdog-action reset
        -device '{"driver":"virtio-balloon-pci","id":"balloon0","bus":"pci.2","addr":"0x0"}'
        -object '{"qom-type":"rng-random","id":"objrng0","filename":"/dev/urandom"}'
        -device '{"driver":"virtio-rng-pci","rng":"objrng0","id":"rng0","bus":"pci.2","addr":"0x0"}'
        -object '{"qom-type":"tdx-guest","id":"lsec0","mrconfigid":"{DIGEST}","mrowner":"{DIGEST}",
                  "mrownerconfig":"{DIGEST}",
                  "quote-generation-socket":{"type":"unix","path":"/var/run/tdx-qgs/qgs.socket"},
                  "attributes":268435456}'
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -msg timestamp=on""",
        {"name": "tdx", "memory": 2 << 30, "vcpus": 4, "mrconfigid": DIGEST, "mrowner": DIGEST,
         "mrownerconfig": DIGEST, "attributes": 0, "pending_ve": False, "restart": False, "stay": True,
         "quotes": "unix:/var/run/tdx-qgs/qgs.socket", "serial.kind": "file", "disks": [("raw", 1)],
         "append": "console=ttyS0 root=/dev/vda1", "rng": True,
         "bootorder": b"/pci@i0cf8/scsi@1/disk@0,0\n\0"},
        ("pcie-root-port", "virtio-balloon-pci", "-sandbox", "-audiodev"),
    ),
    RealLine(
        # Kata Containers.
        "kata",
        """/opt/kata/bin/qemu-system-x86_64-tdx-experimental -name sandbox-0123,debug-threads=on
        -uuid 6f9a1f2e-28a5-4d2c-9d3a-3d7b4d7b6f10
        -machine q35,accel=kvm,kernel_irqchip=split,confidential-guest-support=tdx
        -cpu host,-vmx-rdseed-exit,pmu=off -qmp unix:/tmp/qmp.sock,server=on,wait=off
        -m 2048M,slots=10,maxmem=257749M
        -device pci-bridge,bus=pcie.0,id=pci-bridge-0,chassis_nr=1,shpc=off,addr=2
        -device virtio-serial-pci,disable-modern=false,id=serial0
        -device virtconsole,chardev=charconsole0,id=console0
        -chardev socket,id=charconsole0,path=/tmp/console.sock,server=on,wait=off
        -object tdx-guest,id=tdx,mrconfigid={DIGEST} -object rng-random,id=rng0,filename=/dev/urandom
        -device virtio-rng-pci,rng=rng0
        -device virtio-blk-pci,disable-modern=false,drive=image-0,config-wce=off,share-rw=on,serial=image-0
        -drive id=image-0,file={DISK},aio=threads,format=raw,if=none,readonly=on
        -device vhost-vsock-pci,disable-modern=false,vhostfd=3,id=vsock-3,guest-cid=1234567
        -global kvm-pit.lost_tick_policy=discard -vga none -no-user-config -nodefaults -nographic --no-reboot
        -object memory-backend-ram,id=dimm1,size=2048M -numa node,memdev=dimm1 -daemonize
        -kernel {KERNEL} -initrd {INITRD} -append 'tsc=reliable console=hvc0 console=hvc1 quiet'
        -bios {BIOS} -pidfile /tmp/kata.pid -smp 1,cores=1,threads=1,sockets=1,maxcpus=1""",
        {"name": "sandbox-0123", "memory": 2 << 30, "vcpus": 1, "mrconfigid": DIGEST, "daemonize": True,
         "restart": False, "cid": 1234567, "console.kind": "socket", "serial.kind": "null",
         "disks": [("raw", 2)], "serials": ["image-0"]},
        ("pci-bridge", "vhostfd=3", "slots=10"),
    ),
    RealLine(
        # systemd-vmspawn.
        "vmspawn",
        """qemu-system-x86_64 -machine q35,smm=off,hpet=off,confidential-guest-support=tdx0 -smp 2 -m 2G
        -object tdx-guest,id=tdx0,sept-ve-disable=on -object rng-random,filename=/dev/urandom,id=rng0
        -device virtio-rng-pci,rng=rng0,id=rng-device0 -device virtio-balloon,free-page-reporting=on
        -accel kvm -cpu host -nodefaults -nographic -no-user-config -bios {BIOS}
        -chardev stdio,mux=on,id=console,signal=off -device virtio-serial-pci,id=vmspawn-virtio-serial-pci
        -device virtconsole,chardev=console -mon console
        -smbios type=11,value=io.systemd.stub.kernel-cmdline-extra=console=hvc0
        -smbios 'type=11,value=io.systemd.credential.binary:a=YSwsYg=='
        -drive if=none,id=vmspawn,file={DISK},format=raw,discard=on,snapshot=on
        -device virtio-blk-pci,drive=vmspawn,bootindex=1 -device vhost-vsock-pci,guest-cid=77
        -nic user,model=virtio-net-pci""",
        {"memory": 2 << 30, "console.kind": "stdio", "serial.kind": "null", "cid": 77, "disks": [("raw", 2)],
         "oem": ["io.systemd.stub.kernel-cmdline-extra=console=hvc0",
                 "io.systemd.credential.binary:a=YSwsYg=="],
         "bootorder": b"/pci@i0cf8/scsi@2/disk@0,0\n\0", "snapshot": True, "nets": 1},
        ("virtio-balloon", "-mon console"),
    ),
    RealLine(
        # By hand: short forms, a shared folder, all three digests, a debug TD, an odd machine.
        "by-hand",
        """-M q35 -machine confidential-guest-support=t -enable-kvm -cpu max,tsc-frequency=1000000000 -m 512
        -smp cpus=3,maxcpus=8 -object tdx-guest,id=t,attributes=1,sept-ve-disable=off -bios {BIOS}
        -kernel {KERNEL} -append 'a,b=c'
        -virtfs local,path=/tmp,mount_tag=host,security_model=none,readonly=on
        -fw_cfg name=opt/org.example/x,string=1,,2 -boot menu=on,splash-time=3000 -net none -S
        -qmp unix:/tmp/q.sock,server=on,wait=off -debugcon file:/tmp/ovmf.log
        -global isa-debugcon.iobase=0x402 -display none -snapshot -drive file={DISK},if=virtio,cache=none""",
        {"memory": 512 << 20, "vcpus": 3, "attributes": 1, "pending_ve": True, "tsc_hz": 1e9, "paused": True,
         "append": "a,b=c", "shares": [("host", True)], "debug.kind": "file", "disks": [("raw", 2)],
         "snapshot": True, "files": {"opt/org.example/x": b"1,2", "etc/boot-menu-wait": b"\xb8\x0b"}},
        ("maxcpus=8", "cache=none"),
    ),
)  # fmt: skip

#: What is refused, and words of the message: which option, and what to do.
REFUSED: Final = (
    ("-object tdx-guest,id=t -bios {BIOS}", ["plain VM", "confidential-guest-support"]),
    ("{TD} -m 1G", ["-bios is missing", "swtdx guest firmware"]),
    ("{TD} -bios {BIOS} -drive if=pflash,format=raw,file={BIOS}", ["-drive if=pflash", "-bios"]),
    ("{TD} -bios {BIOS} -pflash {BIOS}", ["-pflash", "-bios"]),
    ("{TD} -bios {BIOS} -hda {DISK}", ["-hda", "if=virtio"]),
    ("{TD} -bios {BIOS} -drive file={DISK}", ["-drive if=ide", "default", "if=virtio"]),
    ("{TD} -bios {BIOS} {DISK}", ["IDE disk", "if=virtio"]),
    ("{TD} -bios {BIOS} -cdrom {DISK}", ["-cdrom", "if=virtio"]),
    ("{TD} -bios {BIOS} -netdev tap,id=n", ["-netdev tap", "-netdev user"]),
    ("{TD} -bios {BIOS} -nic user", ["-nic user", "model=virtio-net-pci"]),
    ("{TD} -bios {BIOS} -device e1000e,netdev=n", ["-device e1000e", "virtio-net-pci"]),
    ("{TD} -bios {BIOS} -device frobnicator", ["-device frobnicator", "there is none here"]),
    ("{TD} -bios {BIOS} -device virtio-blk-pci,drive=d", ["drive=d", "-blockdev"]),
    ("{TD} -bios {BIOS} -device virtio-rng-pci,colour=red", ["virtio-rng-pci colour=red", "no such setting"]),
    ("{TD} -bios {BIOS} -frobnicate", ["-frobnicate", "no such option"]),
    ("{TD} -bios {BIOS} -m", ["-m needs an argument"]),
    ("{TD} -bios {BIOS} -m lots", ["-m size=lots", "4G"]),
    ("{TD} -bios {BIOS} -smp 4,sockets=1,cores=2,threads=1", ["cpus=4", "make 2"]),
    ("{TD} -bios {BIOS} -cpu Skylake-Server", ["-cpu Skylake-Server", "SapphireRapids"]),
    ("{TD} -bios {BIOS} -cpu host,+avx512f", ["+avx512f"]),
    ("{TD} -bios {BIOS} -cpu host,aes=off", ["-aes", "taken away"]),
    ("{TD} -bios {BIOS} -accel tcg", ["accel=tcg", "only KVM"]),
    ("{TD},smm=on -bios {BIOS}", ["smm=on", "no SMM"]),
    ("-machine microvm -bios {BIOS}", ["type=microvm", "q35"]),
    ("{TD} -bios {BIOS} -vga std", ["-vga type=std", "-nographic"]),
    ("{TD} -bios {BIOS} -S", ["-S", "-qmp"]),
    ("{TD} -bios {BIOS} -gdb tcp::1234", ["-gdb", "no gdb server"]),
    ("{TD} -bios {BIOS} -initrd {INITRD}", ["-kernel"]),
    ("{TD} -bios {BIOS} -object sev-snp-guest,id=s", ["sev-snp-guest", "another technology"]),
    ("{TD} -bios {BIOS} -object {broken", ["-object", "begins as JSON"]),
    ("{TD} -bios {BIOS} -serial pty", ["-serial pty", "stdio"]),
    ("{TD} -bios {BIOS} -serial stdio -serial file:x", ["one serial port"]),
    ("{TD} -bios {BIOS} -chardev socket,id=m,fd=22,server=on", ["fd=22", "Unix sockets"]),
    ("{TD} -bios {BIOS} -daemonize -nographic", ["-daemonize", "-serial file:"]),
    ("{TD} -bios {BIOS} -device tpm-crb,tpmdev=t", ["tpm-crb", "RTMR"]),
    ("{TD} -bios {BIOS} -tpmdev emulator,id=t", ["-tpmdev", "RTMR"]),
    ("{TD} -bios {BIOS} -incoming defer", ["-incoming", "migrated"]),
    ("{TD} -bios {BIOS} -numa node -numa node,nodeid=1", ["one NUMA node"]),
    ("{TD} -bios {BIOS} -smbios type=41,designation=x", ["type=41", "0, 1, 2"]),
    ("{TD} -bios {BIOS} -smbios type=1,colour=red", ["colour=red", "manufacturer"]),
    ("{TD} -bios {BIOS} -object memory-backend-ram,id=m,size=1G -m 2G", ["1024 MiB", "2048 MiB"]),
    ("{TD} -bios {BIOS} -global driver=foo,property=bar,value=1", ["foo.bar=1"]),
    ("{TD} -bios {BIOS} -fw_cfg name=opt/x", ["-fw_cfg", "string="]),
    ("{TD} -bios {BIOS} -rtc base=localtime", ["base=localtime"]),
    ("-machine q35,confidential-guest-support=t -object tdx-guest,id=t,mrowner=AAAA -bios {BIOS}",
     ["mrowner=AAAA", "3 bytes", "48"]),
    ("-machine q35,confidential-guest-support=t -object tdx-guest,id=t,attributes=2 -bios {BIOS}",
     ["attributes=0x2", "not known"]),
    ("-machine q35,confidential-guest-support=u -object tdx-guest,id=t -bios {BIOS}",
     ["confidential-guest-support=u", "id=u"]),
)  # fmt: skip

"""What the QEMU of this computer tells firmware, asked through its test port."""

from __future__ import annotations

import struct

import pytest

from swtdx.attestation.eventlog.acpi import split
from swtdx.guests.like_qemu import ACPI_FILES, LikeQemu, LikeQemuError, arguments_for

BARE = "-machine q35,hpet=off -nodefaults"


def machine_of(text: str) -> str:
    arguments = arguments_for(text)
    return arguments[arguments.index("-machine") + 1]


def test_what_needs_a_td_or_the_host_is_left_out() -> None:
    line = (
        "/usr/bin/qemu-system-x86_64 -M type=pc-q35-7.2,kernel_irqchip=split,confidential-guest-support=t "
        """-object '{"qom-type":"tdx-guest","id":"t"}' -object rng-random,id=r,filename=/dev/urandom """
        "-accel kvm -enable-kvm -cpu host,pmu=off -bios OVMF.fd -m 2G -daemonize -pidfile x "
        "-serial file:log -netdev tap,id=n0,fd=3 -device virtio-net-pci,netdev=n0 "
        "-device vhost-vsock-pci,guest-cid=3,addr=5 -append -dash -nographic -smp 2"
    )
    arguments = arguments_for(line)
    assert machine_of(line) == "pc-q35-7.2,smm=off,pic=off,graphics=off"
    assert arguments[2:] == [
        "-cpu", "max", "-object", "rng-random,id=r,filename=/dev/urandom", "-m", "2G",
        "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci,addr=5",
        "-append", "-dash", "-smp", "2", "-serial", "null",
    ]  # fmt: skip
    assert arguments_for("-nodefaults")[-1] == "none"
    assert arguments_for("-nodefaults -serial stdio")[-1] == "null"
    assert machine_of("-machine q35,smm=on") == "q35,smm=on,pic=off"
    for bad in ("q35", "-m 'unclosed"):
        with pytest.raises(LikeQemuError, match="--like-qemu"):
            arguments_for(bad)


@pytest.mark.qemu
def test_it_answers_as_it_would_a_firmware() -> None:
    line = (
        f"{BARE} -m 3G -smp 3 -fw_cfg name=opt/org.example/x,string=hello -smbios type=11,value=from-the-line"
    )
    with LikeQemu(line) as like:
        assert (like.memory, like.vcpus) == (3 << 30, 3)
        files = like.files()
        assert files["opt/org.example/x"] == b"hello"
        assert b"from-the-line\0" in files["etc/smbios/smbios-tables"]
        ram = [entry[:2] for entry in struct.iter_unpack("<QQI", files["etc/e820"]) if entry[2] == 1]
        assert sum(size for _, size in ram) == 3 << 30
        assert not {*ACPI_FILES} & {*files}
        items = like.items()
        assert items[0x03] == (3 << 30).to_bytes(8, "little")
        assert 0x08 not in items

        # ACPI's are made when they are fetched: ECAM is declared where firmware has it.
        without, with_it = like.acpi(0), like.acpi(0xE000_0000)
        assert [*with_it] == [*ACPI_FILES]
        tables = {name: table for name, _, table in split(with_it["etc/acpi/tables"]) if name}
        assert tables["MCFG"][44:52] == (0xE000_0000).to_bytes(8, "little")
        assert "MCFG" not in {name for name, _, _ in split(without["etc/acpi/tables"])}
        # A processor is an entry of type 0 with 8 bytes.
        entries, at = [], 44
        while at < len(tables["APIC"]):
            entries.append(tables["APIC"][at])
            at += tables["APIC"][at + 1]
        assert entries.count(0) == 3
    like.close()


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-machine q35,nonsense=on", "nonsense"),
        (f"{BARE} -device frobnicator", "frobnicator"),
        (f"{BARE} -object sev-snp-guest,id=s", "sev-snp-guest"),
    ],
)
def test_what_qemu_refuses_is_told(line: str, said: str) -> None:
    with pytest.raises(LikeQemuError, match=said):
        LikeQemu(line)

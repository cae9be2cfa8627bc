"""`swtdx qemu`: command lines of QEMU's, read and judged."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from swtdx.cli.inputs import Unusable
from swtdx.cli.main import cli
from swtdx.cli.qemu import lists
from swtdx.cli.qemu.machine import Machine, describe
from swtdx.cli.qemu.reading import read_line
from swtdx.cli.qemu.table import BY_NAME, OPTIONS, Option, Verdict, markdown
from tests.cli.qemu_lines import DIGEST_BASE64, LINES, REFUSED, RealLine

DOCUMENT = Path(__file__).parents[2] / "docs" / "qemu.md"
TD = "-object tdx-guest,id=t -machine q35,confidential-guest-support=t"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    paths = {}
    for name in ("BIOS", "KERNEL", "INITRD", "DISK"):
        paths[name] = str(tmp_path / name.lower())
        Path(paths[name]).write_bytes(bytes(512))
    return paths | {"DIGEST": DIGEST_BASE64, "TD": TD}


def words_of(text: str, files: dict[str, str]) -> list[str]:
    for name, path in files.items():
        text = text.replace(f"{{{name}}}", path)
    return shlex.split(text)


def described(text: str, files: dict[str, str]) -> Machine:
    return describe(read_line(words_of(text, files)))


def looked_up(machine: Machine, name: str) -> Any:
    """A member of the machine, or what a short name of the tests stands for."""
    devices = machine.peripherals
    match name:
        case "disks":
            return [(disk.format, disk.slot) for disk in devices.disks]
        case "serials":
            return [disk.serial for disk in devices.disks]
        case "snapshot":
            return all(disk.snapshot for disk in devices.disks)
        case "forwards":
            return [
                (each.host_address, each.host_port, each.guest_port)
                for net in devices.nets
                for each in net.forwards
            ]
        case "nets":
            return len(devices.nets)
        case "cid":
            return None if devices.vsock is None else devices.vsock.cid
        case "rng":
            return devices.rng
        case "shares":
            return [(share.tag, share.read_only) for share in devices.shares]
        case "bootorder":
            return machine.files["bootorder"]
        case "oem":
            return None if machine.smbios is None else list(machine.smbios.strings)
    value: Any = machine
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_real_lines(line: RealLine, files: dict[str, str]) -> None:
    machine = described(line.text, files)
    assert {name: looked_up(machine, name) for name in line.wants} == line.wants
    notes = [str(note) for note in machine.notes]
    assert [each for each in line.harmless if not any(each in note for note in notes)] == [], notes
    assert machine.firmware == Path(files["BIOS"])
    # Pasted as one word it is the same.
    pasted = line.text
    for name, path in files.items():
        pasted = pasted.replace(f"{{{name}}}", path)
    again = describe(read_line([pasted]))
    assert {name: looked_up(again, name) for name in line.wants} == line.wants


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_is_refused_is_named(text: str, said: list[str], files: dict[str, str]) -> None:
    if "{broken" in text:
        words = [*words_of(text.partition(" -object {broken")[0], files), "-object", '{"qom-type": ']
    else:
        words = words_of(text, files)
    result = CliRunner().invoke(cli, ["qemu", "--check", *words])
    assert result.exit_code == 2, result.output
    assert [each for each in said if each not in result.output] == [], result.output
    assert "internal error" not in result.output


def test_check_lists_what_is_harmless(files: dict[str, str]) -> None:
    line = words_of("{TD} -bios {BIOS} -msg timestamp=on -nographic -nodefaults", files)
    result = CliRunner().invoke(cli, ["qemu", "--check", *line])
    assert (result.exit_code, result.output) == (0, "harmless: -msg timestamp=on: messages have no times\n")


# ------------------------------------------------------------------ the syntax
def test_lists_with_commas() -> None:
    assert lists.pairs("-drive", "file=a,,b,c.img,if=none,readonly,x=y=z", "") == [
        ("file", "a,b"), ("c.img", "on"), ("if", "none"), ("readonly", "on"), ("x", "y=z"),
    ]  # fmt: skip
    assert lists.pairs("-machine", "q35,accel=kvm", "type") == [("type", "q35"), ("accel", "kvm")]


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True), st.text(max_size=8)), min_size=1
    )
)
def test_both_syntaxes_say_the_same(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs)
    assert lists.pairs("-x", text) == pairs
    keyed = dict(pairs)
    assert dict(lists.pairs("-x", json.dumps(keyed))) == keyed


@given(st.lists(st.text(max_size=20), max_size=8))
def test_no_line_raises_anything_but_an_answer(words: list[str]) -> None:
    names = [f"-{option.name}" for option in OPTIONS]
    line = [each for pair in zip(names, words, strict=False) for each in pair]
    for tried in (words, line, ["-device", *words], ["-object", *words], ["-drive", *words, "-smp", *words]):
        with contextlib.suppress(Unusable):
            describe(read_line(tried))


@pytest.mark.parametrize(
    "line", ["qemu-system-x86_64 -name 'a", 'qemu-system-x86_64 -m "2G', "-m 2G -name a\\"]
)
def test_a_pasted_line_that_ends_within_a_word_is_refused(line: str) -> None:
    with pytest.raises(
        Unusable, match=r"cannot be split into words: No (closing quotation|escaped character)"
    ):
        read_line([line])


def test_readconfig(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "vm.cfg").write_text(
        "# a comment\n"
        '[machine]\n  type = "q35"\n  confidential-guest-support = "t"\n'
        '[object "t"]\n  qom-type = "tdx-guest"\n'
        '[memory]\n  size = "1G"\n[smp-opts]\n  cpus = "2"\n'
        f'[drive "d"]\n  file = "{files["DISK"]}"\n  format = "qcow2"\n  if = "none"\n'
        '[device "v"]\n  driver = "virtio-blk-pci"\n  drive = "d"\n  addr = "07.0"\n'
    )
    machine = described(f"-readconfig {tmp_path / 'vm.cfg'} -bios {{BIOS}}", files)
    assert (machine.memory, machine.vcpus) == (1 << 30, 2)
    assert looked_up(machine, "disks") == [("qcow2", 7)]
    (tmp_path / "bad.cfg").write_text("[machine]\nnonsense\n")
    with pytest.raises(Unusable, match=r"bad\.cfg, line 2"):
        described(f"-readconfig {tmp_path / 'bad.cfg'}", files)


# ------------------------------------------------------------------ the table
def test_the_documentation_has_the_table() -> None:
    text = DOCUMENT.read_text()
    assert markdown() in text, "replace the table in docs/qemu.md by what `swtdx qemu --table` prints"
    assert CliRunner().invoke(cli, ["qemu", "--table"]).output == markdown()


def every() -> list[tuple[str, Option]]:
    found = [(option.name, option) for option in OPTIONS]
    return found + [(f"{option.name} {kind.name}", kind) for option in OPTIONS for kind in option.kinds]


def test_what_is_refused_says_what_to_do() -> None:
    for name, option in every():
        assert option.verdict is not Verdict.REFUSED or option.words, name
        for setting in option.settings:
            assert setting.verdict is not Verdict.REFUSED or setting.words, f"{name} {setting.name}"


@pytest.mark.qemu
def test_every_option_of_the_qemu_here_is_in_the_table() -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no QEMU here")
    said = subprocess.run(["qemu-system-x86_64", "-help"], capture_output=True, text=True, check=True).stdout
    names = {
        word.strip("-")
        for words in re.findall(r"^(-[\w/-]+)", said, re.MULTILINE)
        for word in words.split("/")
    }
    assert len(names) > 90
    # Those that are for QEMU's own information.
    assert (
        names - set(BY_NAME)
        == {"h", "version", "audio-help", "portrait", "rotate", "win2k-hack", "xen-domid-restrict"} & names
    )


@pytest.mark.qemu
def test_drivers_and_objects_exist_in_qemu() -> None:
    """A misspelt name in the table would never be used."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("no QEMU here")

    def offered(*words: str) -> str:
        return subprocess.run(
            ["qemu-system-x86_64", *words], capture_output=True, text=True, check=False
        ).stdout

    devices = offered("-device", "help")
    honoured = [kind for kind in BY_NAME["device"].kinds if kind.verdict is Verdict.HONOURED]
    names = {kind.name.split()[0] for kind in honoured}
    # Debian builds vhost-vsock into it, others may not.
    assert {name for name in names if f'"{name}"' not in devices} <= {"vhost-vsock-pci"}
    for kind in honoured:
        name = kind.name.split()[0]
        help_ = offered("-device", f"{name},help")
        if not help_:
            continue
        for setting in kind.settings:
            if setting.verdict is Verdict.HONOURED and setting.name not in ("id", "bus", "guest-cid"):
                assert f"  {setting.name}=" in help_, f"{name} has no {setting.name}"

"""A whole platform to a file and back, bit for bit; what is not such a file is refused by name."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.firmware.image import SignedImage
from swtdx.machine.memory import Command, Requestor
from swtdx.machine.snapshot import SnapshotError, SnapshotWriter
from swtdx.platform import Platform

from .conftest import Boot
from .support import (
    INFO,
    INSTALL,
    MIB,
    PARAMS,
    RAX,
    SEAM,
    SHUTDOWN,
    SUCCESS,
    call,
    enter_root,
    install,
    offer,
)

BUFFER = 32 * MIB


def lived(platform: Platform) -> Platform:
    """Registers, interrupts, timers, keys, dirty lines, a machine check, TD lines in the cache."""
    machine = platform.machine
    memory = machine.memory
    enter_root(platform)
    first, second = machine.processors[:2]
    first.gpr[:] = [0x1111 * number for number in range(16)]
    first.xmm[3] = 1 << 127 | 5
    first.wrmsr(0xC0000103, 99)
    first.interrupt(0x44)
    second.arm_timer(123456, 0x55)
    second.zf = True
    assert memory.keys.program(33, Command.SET_KEY_RANDOM, 2, seam=True) == 0
    memory.direct_store(memory.addresses.join(40 * MIB, 33), bytes(range(64)) * 4)
    memory.write(41 * MIB, b"a dirty line")
    memory.wbnoinvd()
    memory.write(42 * MIB, b"another")
    machine.random.bytes(100)
    return platform


def saved(platform: Platform, path: Path) -> bytes:
    platform.save(path)
    return path.read_bytes()


def test_bit_for_bit(boot: Boot, tmp_path: Path) -> None:
    """Saving changes nothing, loading loses nothing: three files, byte for byte the same."""
    platform = lived(boot(packages=2))
    first = saved(platform, tmp_path / "one")
    assert saved(platform, tmp_path / "two") == first
    with Platform.load(tmp_path / "one") as copy:
        assert saved(copy, tmp_path / "three") == first
        assert copy.summary() == platform.summary()
        assert copy.plan == platform.plan
        assert copy.host.memory_map() == platform.host.memory_map()


def test_both_lives_go_on_alike(boot: Boot, tmp_path: Path, image: SignedImage) -> None:
    platform = lived(boot(packages=2))
    platform.save(tmp_path / "one")
    with Platform.load(tmp_path / "one") as copy:
        seen: list[object] = []
        for either in (platform, copy):
            machine = either.machine
            lp = machine.processors[0]
            told: list[object] = [list(lp.gpr), lp.xmm[3], lp.rdmsr(0xC0000103), sorted(lp.pending), lp.mode]
            told.append((machine.processors[1].timer_deadline, machine.processors[1].zf))
            told.append(machine.random.bytes(32))
            told.append(machine.memory.read(machine.memory.addresses.join(40 * MIB, 33), 256, SEAM))
            told.append(call(either, INFO, BUFFER))
            told.append(machine.memory.read(BUFFER, 256))
            lp.gpr[RAX] = 41
            lp.seamcall()
            told.append((lp.cf, lp.gpr[RAX]))
            # A new INSTALL draws the same address-space randomisation.
            offer(either, image)
            told.append(install(either))
            told.append(machine.memory.read(192 * MIB, 4096, SEAM))
            seen.append(told)
        assert seen[0] == seen[1]
        assert copy.machine.memory.read(192 * MIB, 64) == b"\xff" * 64


def test_in_the_middle_of_an_install(boot: Boot, tmp_path: Path, image: SignedImage) -> None:
    platform = boot(packages=2)
    enter_root(platform)
    offer(platform, image)
    assert call(platform, INSTALL, PARAMS, 2) == (SUCCESS, 0)
    platform.save(tmp_path / "one")
    with Platform.load(tmp_path / "one") as copy:
        lp = copy.machine.processors[0]
        lp.gpr[RAX] = 1
        lp.seamcall()
        assert lp.cf  # the module is shut off
        assert call(copy, INSTALL, PARAMS, 2)[0] != SUCCESS
        for processor in (0, 1, 3):
            assert call(copy, INSTALL, PARAMS, processor) == (SUCCESS, 0)
        lp.gpr[RAX] = 1
        lp.seamcall()
        assert not lp.cf


def test_without_a_module_and_without_a_loader(boot: Boot, tmp_path: Path) -> None:
    platform = boot(load=False, cpus=1)
    platform.save(tmp_path / "one")
    with Platform.load(tmp_path / "one") as copy:
        assert copy.summary()["module"] is None
        enter_root(copy)
        assert call(copy, SHUTDOWN)[0] == SUCCESS
        first = saved(copy, tmp_path / "two")
    with Platform.load(tmp_path / "two") as again:
        assert again.summary()["p_seamldr"] is None
        assert saved(again, tmp_path / "three") == first


def test_a_running_processor_is_not_saved(boot: Boot, tmp_path: Path) -> None:
    platform = boot()
    refusals: list[str] = []

    def module(lp: object) -> None:
        with pytest.raises(SnapshotError) as refusal:
            platform.save(tmp_path / "one")
        refusals.append(str(refusal.value))

    platform.machine.seam.install_module(module, 2)
    enter_root(platform)
    platform.machine.processors[1].seamcall()
    assert refusals == ["processor 1 is in SEAM VMX root; stop it before saving"]
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- refused files
@pytest.fixture
def file(boot: Boot, tmp_path: Path) -> Path:
    lived(boot(packages=2)).save(tmp_path / "platform.snap")
    return tmp_path / "platform.snap"


def refused(path: Path) -> str:
    with pytest.raises(SnapshotError) as refusal:
        Platform.load(path)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def places(data: bytes) -> dict[str, tuple[int, int, int]]:
    """Name → (version, offset, size), by the format in the docstring of ``machine/snapshot.py``."""
    found: dict[str, tuple[int, int, int]] = {}
    table, size = struct.unpack_from("<QQ", data, 16)
    at = table
    while at < table + size:
        length, version, offset, count = struct.unpack_from("<HIQQ", data, at)
        name = data[at + 54 : at + 54 + length].decode()
        found[name] = version, offset, count
        at += 54 + length
    return found


def rewrite(path: Path, name: str, change: Callable[[bytes], bytes], version: int | None = None) -> None:
    """Change one section, with good checksums."""
    data = path.read_bytes()
    with SnapshotWriter(path) as snapshot:
        for each, (old, offset, size) in places(data).items():
            contents = data[offset : offset + size]
            number = version if version is not None and each == name else old
            with snapshot.section(each, number) as out:
                out.write(change(contents) if each == name else contents)


def test_every_truncation_names_the_file(file: Path) -> None:
    whole = file.read_bytes()
    for length in [0, 1, 7, 8, 40, 63, 64, 100, *range(200, len(whole), 1009), len(whole) - 1]:
        file.write_bytes(whole[:length])
        message = refused(file)
        assert any(word in message for word in ("truncated", "not a swtdx snapshot", "corrupted"))


def test_a_corrupted_section_is_named(file: Path) -> None:
    whole = file.read_bytes()
    for name, (_, offset, size) in places(whole).items():
        data = bytearray(whole)
        data[offset + size // 2] ^= 1
        file.write_bytes(data)
        assert f"section {name!r} is corrupted" in refused(file)


@pytest.mark.parametrize("name", ["machine", "memory", "processors", "seam", "vmcs", "firmware"])
def test_another_version_of_a_section(file: Path, name: str) -> None:
    rewrite(file, name, lambda contents: contents, 77)
    message = refused(file)
    assert f"section {name!r} has version 77" in message
    assert "save the machine again with this swtdx" in message


def test_another_version_of_the_file(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    file.write_bytes(data)
    assert "snapshot format 2" in refused(file)


def test_a_missing_section_and_no_file_at_all(file: Path, tmp_path: Path) -> None:
    with SnapshotWriter(file) as snapshot, snapshot.section("clock", 1):
        pass
    assert "no section 'firmware'" in refused(file)
    assert "No such file" in refused(tmp_path / "nothing")


def plan_with(index: int, value: object) -> Callable[[bytes], bytes]:
    """Change DRAM (0), SMRR (1), SEAMRR (2), CMRs (3) or usable memory (4) in the section."""

    def change(contents: bytes) -> bytes:
        length = int.from_bytes(contents[:8], "little")
        plan = json.loads(contents[8 : 8 + length])
        plan[index] = value
        text = json.dumps(plan).encode()
        return len(text).to_bytes(8, "little") + text + contents[8 + length :]

    return change


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, [[0, 128 * MIB]], "DRAM ranges"),
        (2, [64 * MIB, 32 * MIB], "SEAMRR 0x4000000-0x5ffffff, and the machine's is 0xc000000-0xdffffff"),
        (3, [[MIB, 192 * MIB]], "CMR 0 0x100000-0xc0fffff overlaps SEAMRR 0xc000000-0xdffffff"),
        (3, [[MIB, MIB], [223 * MIB, MIB]], "CMR 1 0xdf00000-0xdffffff overlaps SEAMRR"),
        (3, [[248 * MIB, MIB]], "overlaps SMRR"),
        (3, [[MIB, 1 << 40]], "CMR 0"),
        (3, [[MIB, 0]], "CMR 0"),
        (3, [[1 << 40, MIB]], "not backed by memory"),
        (3, [[MIB, 2 * MIB]], "recorded in P_SYS_INFO_TABLE"),
        (4, [[200 * MIB, MIB]], "usable memory 0xc800000-0xc8fffff overlaps SEAMRR"),
        (3, [[1]], "makes no sense"),
        (3, "CMRs", "makes no sense"),
        (3, None, "makes no sense"),
    ],
)
def test_a_memory_map_that_no_bios_could_have_made(file: Path, index: int, value: object, words: str) -> None:
    rewrite(file, "firmware", plan_with(index, value))
    message = refused(file)
    assert "section 'firmware'" in message
    assert words in message


def machine_with(**changes: object) -> Callable[[bytes], bytes]:
    def change(contents: bytes) -> bytes:
        length = int.from_bytes(contents[:8], "little")
        text = json.dumps(json.loads(contents[8 : 8 + length]) | changes, sort_keys=True).encode()
        return len(text).to_bytes(8, "little") + text + contents[8 + length :]

    return change


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packages": 0}, "1 to 8 packages"),
        ({"packages": 9}, "1 to 8 packages"),
        ({"packages": "two"}, "makes no sense"),
        ({"processors_per_package": 3}, "4 processors, and the machine has 6"),
        ({"options": {"model": "pentium"}}, "no processor model 'pentium'"),
        ({"options": 5}, "makes no sense"),
        ({"usable": [[192 * MIB, MIB]]}, "overlaps SEAMRR"),
        ({"usable": 7}, "makes no sense"),
        ({"machine_checks": [[0, 1, 2]]}, "makes no sense"),
        ({"machine_checks": [[0, 64, 2, "nonsense"]]}, "makes no sense"),
    ],
)
def test_a_machine_that_makes_no_sense(file: Path, changes: dict[str, object], words: str) -> None:
    rewrite(file, "machine", machine_with(**changes))
    assert words in refused(file)


def test_software_that_is_not_here_any_more(
    boot: Boot, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What runs in SEAM comes back only if its files are still those that were admitted."""
    from swtdx.firmware import manifest

    real = manifest.find_sources
    other = tmp_path / "__init__.py"
    other.write_text("# another stand-in\n")

    def find(package: str) -> dict[str, Path]:
        found = real(package)
        return dict.fromkeys(found, other) if package == "tests.firmware.standin" else found

    monkeypatch.setattr(manifest, "find_sources", find)
    message = refused(file)
    assert "SEAM software is not here any more" in message
    assert "is not the file that was signed" in message


def test_module_pages_that_were_changed_in_the_file(boot: Boot, file: Path) -> None:
    """The pages in the SEAM range are the manifest; one that names another file is refused."""
    with Platform.load(file) as platform:
        code = 220 * MIB
        page = platform.machine.memory.read(code, 4096, SEAM)
        at = page.index(b'"files":{') + 60
        platform.machine.memory.write(code + at, b"0" if page[at : at + 1] != b"0" else b"1", SEAM)
        platform.save(file)
    assert "section 'firmware'" in refused(file)


def test_random_changes_behind_good_checksums(file: Path) -> None:
    """Never anything but a refusal by name or a platform that works."""
    whole = file.read_bytes()
    rng = random.Random(3)
    names = ("machine", "processors", "seam", "vmcs", "firmware")
    outcomes = {"refused": 0, "loaded": 0}
    for _ in range(100):
        file.write_bytes(whole)
        name = rng.choice(names)

        def spoil(contents: bytes) -> bytes:
            data = bytearray(contents)
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
            return bytes(data)

        rewrite(file, name, spoil)
        complaint = None
        try:
            with Platform.load(file) as platform:
                platform.summary()
        except SnapshotError as error:
            complaint = str(error)
        outcomes["loaded" if complaint is None else "refused"] += 1
        assert complaint is None or str(file) in complaint
    assert min(outcomes.values()) > 10


def test_a_dma_view_of_the_loaded_range(file: Path) -> None:
    with Platform.load(file) as platform:
        assert platform.machine.memory.read(192 * MIB, 8, Requestor.DEVICE) == b"\xff" * 8
        assert hashlib.sha384(platform.machine.memory.read(220 * MIB, 4096, SEAM)).digest() == bytes(
            platform.machine.seam.extend[24:72]
        )

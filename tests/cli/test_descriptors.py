"""Standard streams as they come in real life: closed, a pipe that nobody reads, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.attestation.world import World
from tests.measure.images import Image

COMMANDS = (
    "explain",
    "abi",
    "platform",
    "show",
    "verify",
    "eventlog",
    "measure",
    "root",
    "scenarios",
    "help",
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A command line that prints something, for each command that only prints."""
    from swtdx.attestation.eventlog.format import event, write

    folder = tmp_path_factory.mktemp("inputs")
    world = World()
    (folder / "quote").write_bytes(world.quote())
    (folder / "collateral").write_text(world.collateral().to_json())
    (folder / "root").write_text(world.pki.root.pem)
    (folder / "log").write_bytes(write([event(number, 2, 0xD, b"x" * 100) for number in range(2000)]))
    (folder / "image").write_bytes(Image().build())
    verify = ["--collateral", f"{folder}/collateral", "--root", f"{folder}/root", "--accept-simulated"]
    return {
        "explain": ["explain", "TDH.VP.ENTER"],
        "abi": ["abi", "--list"],
        "platform": ["platform"],
        "show": ["show", f"{folder}/quote"],
        "verify": ["verify", f"{folder}/quote", *verify, "--now", str(int(world.now.timestamp()))],
        "eventlog": ["eventlog", f"{folder}/log"],
        "measure": ["measure", f"{folder}/image"],
        "root": ["pcs", "root"],
        "scenarios": ["pcs", "scenarios"],
        "help": ["--help"],
    }


def run(words: list[str], redirections: str) -> tuple[int, str]:
    """Run a command line under a shell's redirections: exit status, and what it said on the log."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-c", ENTRY, *words],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


ENTRY = "from swtdx.cli.main import entry; entry()"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_daemon_has_no_standard_streams(name: str, commands: dict[str, list[str]], tmp_path: Path) -> None:
    for redirections in (">&-", "<&- >&- 2>&-"):
        assert run(commands[name], redirections) == (0, ""), redirections
    # What is printed goes nowhere, and into no file that happens to have got the descriptor.
    status, text = run(commands[name], f"<&- >{tmp_path}/out 2>&-")
    assert (status, text) == (0, "")
    assert (tmp_path / "out").stat().st_size > 100


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_left_ends_it_quietly(name: str, commands: dict[str, list[str]]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, *commands[name]],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_told(name: str, commands: dict[str, list[str]]) -> None:
    status, text = run(commands[name], ">/dev/full")
    assert (status, text) == (2, "swtdx: the output cannot be written: No space left on device\n")


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    from click import ClickException

    from swtdx.cli.inputs import check_writable, write_bytes

    (tmp_path / "file").write_bytes(b"before")
    write_bytes(tmp_path / "file", b"after", "the thing")
    assert (tmp_path / "file").read_bytes() == b"after"
    for wrong in (tmp_path, tmp_path / "none" / "file"):
        with pytest.raises(ClickException, match="cannot write the thing to"):
            check_writable(wrong, "the thing")
    check_writable(tmp_path / "new", "the thing")
    check_writable(tmp_path / "file", "the thing")
    for wrong in (tmp_path, tmp_path / "none" / "file", Path("/dev/full")):
        with pytest.raises(ClickException, match="cannot write the thing to"):
            write_bytes(wrong, b"x", "the thing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("option", ["-o", "--collateral", "--root", "--eventlog"])
def test_quote_knows_before_it_boots_that_it_cannot_write(option: str, tmp_path: Path) -> None:
    """In a second, without a kernel or QEMU: nothing has been started."""
    status, text = run(["quote", option, f"{tmp_path}/none/file", "--kernel", "/nowhere"], "")
    assert status == 2
    assert f"to {tmp_path}/none/file: there is no such folder" in text

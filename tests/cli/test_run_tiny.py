"""The tiny guest as a TD, for real: the whole command, on QEMU, in about a second."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="needs QEMU"),
]
RUN = [sys.executable, "-m", "swtdx.cli.main", "run"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def test_it_runs_and_the_summary_adds_up(tmp_path: Path) -> None:
    summary_file = tmp_path / "summary"
    done = run("--tiny", "--json", str(summary_file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Hello from inside a trust domain!")
    assert done.stderr == ""
    summary = json.loads(summary_file.read_text())
    assert summary["end"]["reason"] == "power-off"
    assert summary["end"]["exit_status"] == 0
    # Every entry ends in one exit; each byte on the serial port costs a TDVMCALL.
    assert summary["seamcalls"]["TDH.VP.ENTER"] == sum(summary["exits"].values())
    assert summary["exits"]["TDVMCALL"] == sum(summary["tdvmcalls"].values())
    assert summary["tdvmcalls"]["Instruction.IO"] > len(done.stdout)
    assert sum(summary["phases"].values()) < summary["total_seconds"]


def test_the_summary_follows_the_output_on_standard_output() -> None:
    done = run("--tiny", "--json", "-")
    output, brace, rest = done.stdout.partition("{\n")
    assert output.rstrip().endswith("Bye.")
    assert json.loads(brace + rest)["kernel"]


def test_serial_output_goes_to_a_file(tmp_path: Path) -> None:
    serial = tmp_path / "serial"
    done = run("--tiny", "--serial", str(serial))
    assert (done.returncode, done.stdout) == (0, "")
    assert serial.read_bytes().startswith(b"Hello from inside a trust domain!\r\n")


def test_debug_is_an_attribute_and_seeds_change_no_measurement() -> None:
    def values(*arguments: str) -> dict[str, str]:
        done = run("--tiny", *arguments)
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"^  (\S.*\S)\s+([0-9a-f]+)$", done.stdout, re.MULTILINE))

    plain, debug, seeded = values(), values("--debug"), values("--seed", "another one")
    assert int(plain["ATTRIBUTES"], 16) & 1 == 0
    assert int(debug["ATTRIBUTES"], 16) == int(plain["ATTRIBUTES"], 16) | 1
    assert plain["MRTD"] == debug["MRTD"] == seeded["MRTD"]
    # TEE_INFO_HASH covers the attributes.
    assert plain["TEE_INFO_HASH"] != debug["TEE_INFO_HASH"]


def test_without_qemu_it_says_what_to_install(tmp_path: Path) -> None:
    done = run("--tiny", PATH=str(tmp_path), SWTDX_QEMU="")
    assert done.returncode == 125
    assert "qemu-system-x86_64 is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_machine_too_small_for_its_guest_is_refused() -> None:
    done = run("--tiny", "--memory", "5000T")
    assert done.returncode in (2, 125)
    assert done.stderr.startswith("swtdx: ")
    assert "Traceback" not in done.stderr


def test_a_closed_output_ends_it() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*RUN, "--tiny"], stdout=writer, stderr=subprocess.PIPE, timeout=120, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_signal_ends_it_and_leaves_no_qemu(tmp_path: Path) -> None:
    """The serial port goes to a pipe that nobody empties: the guest stands still until we say so."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen([*RUN, "--tiny", "--serial", str(fifo)], stderr=subprocess.PIPE)
    with open(fifo, "rb") as serial:
        assert serial.read(5) == b"Hello"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (0, 128 + signal.SIGTERM)
    for child in children:
        assert not Path(f"/proc/{child}").exists()

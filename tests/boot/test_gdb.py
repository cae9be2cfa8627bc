"""Debian's gdb and an unmodified kernel in a debug TD: from its first instruction to a command's output."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.guests.guest import Guest

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.boot,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb"),
]
SWTDX = [sys.executable, "-m", "swtdx.cli.main"]
SCRIPT = """
set pagination off
set confirm off
set tcp connect-timeout 60
target remote :{port}
echo \\n== reset\\n
info registers rip
stepi
info registers rip
hbreak start_kernel
continue
echo \\n== start_kernel\\n
info registers rip efer cr0
backtrace 3
stepi
x/i $rip
delete
break rest_init
continue
echo \\n== rest_init\\n
delete
eval "watch *(long *)0x%lx", $rsp - 8
continue
x/i $rip
delete
monitor exits
monitor sept 0x1000000
set $rbx = 0x1122334455667788
print/x $rbx
break kernel_init
break kernel_init_freeable
break kernel_execve
continue
continue
continue
echo \\n== kernel_execve\\n
info threads
x/2i $rip
delete
detach
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def symbols(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("symbols")
    command = "grep -E ' [tTwW] (_text|start_kernel|rest_init|kernel_|x86_64_start)' /proc/kallsyms"
    listed = subprocess.run(
        [*SWTDX, "run", "-n", "--guest", guest.version, "--append", "nokaslr", "--exec", command],
        capture_output=True, timeout=200, check=True,
    )  # fmt: skip
    made = subprocess.run(
        [*SWTDX, "guest", "symbols", "-", "-o", str(folder / "syms")],
        input=listed.stdout, capture_output=True, timeout=60,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return folder / "syms"


def test_gdb_and_a_stock_kernel(guest: Guest, symbols: Path, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "script").write_text(SCRIPT.format(port=port))
    run = [
        *SWTDX, "run", "-n", "--guest", guest.version, "--debug", "--gdb", f":{port}", "--wait", "--append",
        "nokaslr", "--exec", "echo alive; cat /proc/uptime", "--timeout", "200",
    ]  # fmt: skip
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as td:
        assert td.stderr is not None
        assert b"waiting for GDB" in td.stderr.readline()
        seen = subprocess.run(
            ["gdb", "-nx", "-batch", "-x", str(tmp_path / "script"), str(symbols)],
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        output, errors = td.communicate(timeout=200)
    text = seen.stdout
    parts = dict(re.findall(r"== (\w+)\n(.*?)(?=\n== |\Z)", text, re.DOTALL))
    assert parts.keys() == {"reset", "start_kernel", "rest_init", "kernel_execve"}, text + seen.stderr
    # Without --debug a TD starts at the same place: the last 16 bytes below 4 GiB.
    first, second = re.findall(r"rip +0x([0-9a-f]+)", parts["reset"])
    assert first == "fffffff0"
    assert second != first
    assert re.search(r"rip +0x(f{8}[0-9a-f]{8}) .*<start_kernel>", parts["start_kernel"])
    frames = re.findall(r"^#\d+ .* in (\w+) \(\)", parts["start_kernel"], re.MULTILINE)
    assert frames == ["start_kernel", "x86_64_start_reservations", "x86_64_start_kernel"]
    assert "<start_kernel+" in parts["start_kernel"]
    assert "Hardware watchpoint" in parts["rest_init"]
    assert "New value" in parts["rest_init"]
    # What a target says goes to GDB's standard error.
    assert "TDH.VP.RD" in seen.stderr
    assert re.search(r"level [012], MAPPED", seen.stderr)
    assert "0x1122334455667788" in parts["rest_init"]
    # The third of these breakpoints is an INT3, which the debugger does not see.
    assert "<kernel_execve>" in parts["kernel_execve"]
    assert "int3" not in parts["kernel_execve"]
    assert "vCPU 0" in parts["kernel_execve"]
    assert td.returncode == 0, (errors, text)
    assert output.startswith(b"alive\n")


def test_what_is_refused(tmp_path: Path) -> None:
    for words, status, why in (
        (["--gdb", ":1"], 2, "add --debug"),
        (["--wait"], 2, "goes with --gdb"),
        (["--tiny", "--debug", "--gdb", "nowhere"], 125, "no address for GDB"),
    ):
        done = subprocess.run([*SWTDX, "run", *words], capture_output=True, timeout=60)
        assert done.returncode == status
        assert why in done.stderr.decode()
    (tmp_path / "list").write_text("0000000000000000 T start_kernel\n")
    done = subprocess.run(
        [*SWTDX, "guest", "symbols", str(tmp_path / "list"), "-o", str(tmp_path / "out")], capture_output=True
    )
    assert (done.returncode, (tmp_path / "out").exists()) == (1, False)
    assert b"read by root" in done.stderr

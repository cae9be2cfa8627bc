"""Where there is no Linux: importing, explaining, verifying, vectors and measuring work all the same.

What only Linux has is taken away in a fresh interpreter, as it is missing on macOS: functions of ``os``,
/proc, and the machine's architecture.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Run before anything of ours is imported.
WITHOUT_LINUX = """
import builtins, fcntl, os, platform, select, signal, socket, sys, sysconfig

sysconfig.get_config_vars()  # of the Python that this really is

sys.platform = "darwin"
platform.system = lambda: "Darwin"
platform.machine = lambda: "arm64"
for module, names in {
    os: ("memfd_create", "sched_getaffinity", "sched_setaffinity", "eventfd", "eventfd_read", "eventfd_write",
         "MFD_CLOEXEC", "SEEK_DATA", "SEEK_HOLE", "posix_fallocate", "copy_file_range", "pidfd_open",
         "sendfile", "fdatasync", "preadv", "pwritev", "splice", "getrandom", "O_TMPFILE", "O_PATH", "setns"),
    select: ("epoll", "EPOLLIN"),
    signal: ("SIGRTMIN", "SIGPWR", "SIGSTKFLT", "sigtimedwait", "sigwaitinfo", "pidfd_send_signal"),
    socket: ("AF_VSOCK", "AF_NETLINK", "SO_PEERCRED", "VMADDR_CID_HOST", "VMADDR_CID_ANY", "SOCK_CLOEXEC"),
    fcntl: ("F_ADD_SEALS", "F_SEAL_GROW", "F_SEAL_SHRINK", "F_SETPIPE_SZ", "F_OFD_SETLK", "F_NOTIFY"),
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

real = builtins.open
def guarded(file, *arguments, **options):
    if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "there is no /proc here", file)
    return real(file, *arguments, **options)
builtins.open = guarded
"""


def run(code: str, folder: Path) -> str:
    """What ``code`` prints there."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LINUX + code], cwd=folder, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], "swtdx, version"),
        (["--help"], "verify"),
        (["explain", "0xC000010000000000"], "TDX_OPERAND_INVALID"),
        (["abi", "--help"], "--order"),
        (["verify", "q.bin", "--collateral", "c.json", "--root", "r.pem", "--accept-simulated"], "UpToDate"),
        (["show", "q.bin"], "mrtd"),
        (["pcs", "scenarios"], "pck-revoked"),
        (["vectors", "make", "out"], "vectors in out"),
        (["run", "--help"], "--exec"),
        (["completion", "zsh"], "#compdef swtdx"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) else None,
)
def test_commands(words: list[str], expected: str, tmp_path: Path) -> None:
    code = f"""
import swtdx
service = swtdx.CollateralService()
files = {{"q.bin": bytes(service.quote()), "c.json": service.collateral(), "r.pem": service.root}}
for name, data in files.items():
    with open(name, "wb") as out:
        out.write(data)
from swtdx.cli.main import main
status = main({words!r})
assert status == 0, status
"""
    assert expected.lower() in run(code, tmp_path).lower()


def test_the_interface_and_the_plugin(tmp_path: Path) -> None:
    code = """
import swtdx, swtdx.testing.plugin
assert swtdx.explain("MapGPA")
quote = swtdx.make_quote(b"x")
with swtdx.CollateralService() as service:
    assert swtdx.verify(quote, service.collateral(), root=service.root, accept_simulated=True).accepted
print("fine")
"""
    assert run(code, tmp_path) == "fine\n"


def test_a_machine_says_what_it_needs(tmp_path: Path) -> None:
    code = """
from swtdx.cli.main import main
status = main(["demo", "mmio"])
assert status != 0, status
"""
    run(code, tmp_path)

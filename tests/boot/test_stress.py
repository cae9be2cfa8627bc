"""Debian's stress-ng in a TD: a program of which parts are compiled once for each of many processors.

Such a program asks for the processor's model, and takes every part of P-cores to have AVX-512; those of
E-cores have none.  So it says whether what the default part claims to be is what the engine executes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.boot.process import Watched, watched
from tests.fetching import cannot_fetch

pytestmark = [pytest.mark.boot, pytest.mark.qemu, pytest.mark.network]

STRESSORS = ("cpu", "matrix", "vm", "fork")
#: Where it lies in the guest, with the C library of its own release.
PLACE = "/opt/stress-ng"
COMMAND = (
    f"cd {PLACE} && mount -t proc proc proc && mount -t sysfs sys sys && mount -t devtmpfs dev dev && "
    f"mount -t tmpfs tmp tmp && chroot . /usr/bin/stress-ng --temp-path /tmp --vm-bytes 16M --verify "
    "--metrics-brief " + " ".join(f"--{name} 1" for name in STRESSORS)
)
#: Of what stress-ng depends on: not needed for its start, and much.
_LEFT_OUT = re.compile(r"mesa|llvm|x11-data|-common_", re.IGNORECASE)


@pytest.fixture(scope="module")
def stress_ng(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Debian's stress-ng and every library that it needs, whatever is installed here."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        cannot_fetch("apt-get or dpkg-deb not found")
    archives, root = tmp_path_factory.mktemp("archives"), tmp_path_factory.mktemp("root")
    (archives / "partial").mkdir()
    options = {
        "Dir::State::status": "/dev/null", "Dir::Cache::archives": archives, "Debug::NoLocking": 1,
        "APT::Sandbox::User": "root",
    }  # fmt: skip
    done = subprocess.run(
        ["apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
         "install", "-d", "-y", "-qq", "--no-install-recommends", "stress-ng"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        cannot_fetch(f"stress-ng cannot be downloaded: {done.stderr.strip() or done.stdout.strip()}")
    for package in sorted(archives.glob("*.deb")):
        if not _LEFT_OUT.search(package.name):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    for useless in ("usr/share", "etc", "var"):
        shutil.rmtree(root / useless, ignore_errors=True)
    for name in ("lib", "lib64"):
        # Later releases have all below /usr, and the links are of a package that nothing depends on.
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    for point in ("proc", "sys", "dev", "tmp"):
        (root / point).mkdir(exist_ok=True)
    return root


def stressed(root: Path, seconds: int, *options: str) -> tuple[Watched, dict[str, int]]:
    """A TD that runs it: what was seen, and how much each stressor did."""
    command = f"{COMMAND} --timeout {seconds}s"
    seen = watched("run", "--merge-stderr", *options, "--add", f"{root}:{PLACE}", "--exec", command)
    metrics = re.compile(r"\] (\w+) +(\d+) +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+")
    found = (metrics.search(line) for _, line in seen.lines)
    return seen, {match[1]: int(match[2]) for match in found if match}


def test_nothing_fails(stress_ng: Path) -> None:
    seen, done = stressed(stress_ng, 20, "--vcpus", "2")
    text = "\n".join(line for _, line in seen.lines)
    assert seen.returncode == 0, (seen.stderr, text)
    assert "successful run completed" in text
    assert not re.search(r"fail:|error:|unexpected signal|(failed|untrustworthy): [1-9]", text), text
    assert set(STRESSORS) <= done.keys(), text
    assert all(done[name] for name in STRESSORS), text


def test_a_part_of_p_cores_is_taken_at_its_word(stress_ng: Path) -> None:
    """Why the default is none: the guest sees no AVX-512 there, but a name that stands for it."""
    seen, _ = stressed(stress_ng, 5, "--model", "sapphire-rapids")
    if not any("SIGILL" in line for _, line in seen.lines):
        pytest.skip("this stress-ng has nothing compiled for arch=sapphirerapids")

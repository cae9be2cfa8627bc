"""A kernel that can be a TDX host: built once from the distribution's source package, kept in the cache.

Debian's own kernels have the TDX host support off; the source package of any kernel from 6.16 on has it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests.apt import Apt, Package
from swtdx.guests.cache import Cache, CacheEntry
from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import open_apt, with_lists
from swtdx.guests.kernel import KernelImage, load_kernel
from swtdx.guests.progress import Quiet, Reporter
from swtdx.host.errors import HostError
from swtdx.host.initramfs import HostModule
from swtdx.host.kernel_config import REQUIRED, fragment

KIND: Final = "hosts"
#: The first kernel whose KVM runs TDs.
OLDEST: Final = (6, 16)
_SOURCE: Final = re.compile(r"linux-source-(\d+)\.(\d+)")
_SUITE: Final = re.compile(r"[a-z][a-z0-9-]*")
#: What building needs beside a C compiler's own parts: command, Debian's package.
_TOOLS: Final = (
    ("gcc", "gcc"), ("make", "make"), ("ld", "binutils"), ("flex", "flex"), ("bison", "bison"), ("m4", "m4"),
    ("bc", "bc"), ("perl", "perl"), ("tar", "tar"), ("xz", "xz-utils"),
)  # fmt: skip
#: Bytes that source and build take.
_ROOM: Final = 3 << 30
_FILES: Final = 1400
#: Built files by their names in the cache.
_RESULTS: Final = {
    "bzImage": "arch/x86/boot/bzImage",
    "System.map": "System.map",
    "config": ".config",
    "irqbypass.ko": "virt/lib/irqbypass.ko",
    "kvm.ko": "arch/x86/kvm/kvm.ko",
    "kvm-intel.ko": "arch/x86/kvm/kvm-intel.ko",
}
#: In load order, with parameters.
_LOADED: Final = (("irqbypass", ""), ("kvm", ""), ("kvm-intel", "tdx=1"))


@dataclass(frozen=True, slots=True)
class HostKernel:
    """A kernel with its modules in the cache."""

    entry: CacheEntry
    version: str

    @property
    def image(self) -> Path:
        """The bzImage."""
        return self.entry.path("bzImage")

    @property
    def system_map(self) -> Path:
        """The addresses of its symbols."""
        return self.entry.path("System.map")

    def load(self) -> KernelImage:
        """The bzImage, parsed."""
        return load_kernel(self.image)

    def modules(self) -> list[HostModule]:
        """KVM with TDX, in load order."""
        return [
            HostModule(name, self.entry.path(f"{name}.ko").read_bytes(), parameters)
            for name, parameters in _LOADED
        ]


def cached_kernel(cache: Cache | None = None) -> HostKernel | None:
    """The newest kernel in the cache that was built with today's configuration."""
    cache = cache or Cache()
    found = []
    for name in cache.names(KIND):
        try:
            entry = cache.open(KIND, name)
        except CacheError:
            continue
        if entry.details.get("config") == _digest(fragment()):
            found.append(HostKernel(entry, str(entry.details["version"])))
    return max(found, key=lambda kernel: _numbers(kernel.version), default=None)


def prepare_kernel(
    suite: str | None = None,
    *,
    progress: Reporter | None = None,
    cache: Cache | None = None,
    again: bool = False,
) -> HostKernel:
    """The host kernel, from the cache or built now (some minutes).

    Args:
        suite: take the source package from this release of the distribution ("sid"); the system's own by
            default.
        progress: told what happens.
        cache: by default the user's.
        again: build even if the cache has one.

    Raises:
        HostError: a tool is missing, the sources have no kernel that is new enough, or the build failed.
        FetchError, CacheError: the package cannot be had; the cache cannot be written.
    """
    cache = cache or Cache()
    progress = progress or Quiet()
    if suite is not None and not _SUITE.fullmatch(suite):
        raise HostError(f"{suite!r} is not the name of a release, such as trixie")
    if not again and suite is None and (kernel := cached_kernel(cache)):
        return kernel
    _check_tools()
    with cache.lock(progress):
        apt = open_apt(cache, suite)
        if suite is not None:
            apt.use_private_lists(progress)
        package = with_lists(apt, progress, lambda: _choose(apt))
        key = _digest(package.version + package.sha256 + fragment())[:12]
        version = package.version.partition("-")[0]
        name = f"linux-{version}-{key}"
        if not again:
            try:
                return HostKernel(cache.open(KIND, name), version)
            except CacheError:
                pass
        with tempfile.TemporaryDirectory(prefix="swtdx-build-", dir=_build_room(cache)) as scratch:
            files = _build(apt, package, Path(scratch), progress)
        details = {
            "version": version, "source": f"{package.name} {package.version}", "config": _digest(fragment()),
        }  # fmt: skip
        return HostKernel(cache.store(KIND, name, files, details), version)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _check_tools() -> None:
    missing = [package for tool, package in _TOOLS if shutil.which(tool) is None]
    if shutil.which("gcc") is not None:
        asked = subprocess.run(
            ["gcc", "-E", "-x", "c", "-"], input=b"#include <gelf.h>\n", capture_output=True, check=False
        )
        if asked.returncode:
            missing.append("libelf-dev")
    if missing:
        raise HostError(
            "building the host's kernel needs more tools; to install them:"
            f" sudo apt-get install --no-install-recommends {' '.join(missing)}"
        )


def _build_room(cache: Cache) -> Path:
    """Where there is room for a kernel's source: beside the cache."""
    free = shutil.disk_usage(cache.root).free
    if free < _ROOM:
        raise HostError(
            f"{cache.root} has {free >> 20} MiB free, and building a kernel takes {_ROOM >> 20} MiB; make"
            " room there, or point XDG_CACHE_HOME to another disk"
        )
    return cache.root


def _choose(apt: Apt) -> Package:
    """The newest source package that is new enough."""
    numbered = [(found, name) for name in apt.names("linux-source-") if (found := _SOURCE.fullmatch(name))]
    numbered.sort(key=lambda pair: (int(pair[0][1]), int(pair[0][2])), reverse=True)
    fitting = [name for found, name in numbered if (int(found[1]), int(found[2])) >= OLDEST]
    for package in apt.packages(fitting):
        return package
    known = ", ".join(name for _, name in numbered[:3]) or "none at all"
    raise FetchError(
        f"KVM runs TDs from Linux {OLDEST[0]}.{OLDEST[1]} on, and the package sources have {known}; take the"
        " source of a newer release: swtdx host prepare --suite sid"
    )


def _build(apt: Apt, package: Package, scratch: Path, progress: Reporter) -> dict[str, bytes]:
    deb = apt.download(package, scratch, progress)
    progress.step(f"unpacking {package.name}")
    _run(["dpkg-deb", "-x", str(deb), str(scratch / "package")], scratch)
    deb.unlink()
    archives = sorted((scratch / "package").glob("usr/src/linux-source-*.tar.*"))
    if not archives:
        raise HostError(f"{package.name} {package.version} holds no kernel source")
    _run(["tar", "xf", str(archives[0])], scratch)
    source = next(path for path in scratch.glob("linux-source-*") if path.is_dir())
    wanted = scratch / "fragment"
    wanted.write_text(fragment(), "utf-8")
    environment = {**os.environ, "KCONFIG_ALLCONFIG": str(wanted), "LC_ALL": "C.UTF-8"}
    # The same source gives the same kernel, whoever builds it where and when.
    environment |= {
        "KBUILD_BUILD_USER": "swtdx", "KBUILD_BUILD_HOST": "swtdx", "KBUILD_BUILD_TIMESTAMP": "@0",
    }  # fmt: skip
    _run(["make", "allnoconfig"], source, environment)
    lines = set((source / ".config").read_text("utf-8").splitlines())
    lacking = [line for line in REQUIRED if line not in lines]
    if lacking:
        raise HostError(
            f"{package.name} {package.version} cannot be configured as a TDX host: no {lacking[0]}"
        )
    _make(source, environment, package, progress)
    return {name: (source / path).read_bytes() for name, path in _RESULTS.items()}


def _make(source: Path, environment: dict[str, str], package: Package, progress: Reporter) -> None:
    """The build itself, told every few files."""
    command = ["make", f"-j{len(os.sched_getaffinity(0))}", "bzImage", "modules"]
    process = subprocess.Popen(
        command, cwd=source, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", process_group=0,
    )  # fmt: skip
    assert process.stdout is not None, "it is a pipe"
    last: list[str] = []
    try:
        for number, line in enumerate(process.stdout):
            last = [*last[-20:], line.rstrip()]
            if number % 50 == 0:
                percent = min(99, number * 100 // _FILES)
                progress.step(f"building {package.name} {package.version} as a TDX host: {percent} %")
        process.wait()
    except BaseException:
        os.killpg(process.pid, 15)
        process.wait()
        raise
    if process.returncode:
        wrong = [line for line in last if "rror" in line] or last[-3:]
        raise HostError(f"building {package.name} {package.version} failed: {'; '.join(wrong[:3])}")


def _run(command: list[str], where: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command, cwd=where, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["it did not say why"]
        raise HostError(f"`{command[0]} {command[1]}` failed: {words[0]}")

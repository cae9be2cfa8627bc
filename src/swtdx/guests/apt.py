"""Asking the system's package tool, apt, for packages, without being root.

``apt-cache`` and ``apt-get download`` work for anyone as long as the system has package lists.  Where
it has none (containers often throw them away), or they are out of date, apt can keep lists of its own
in any directory: ``apt-get -o Dir::State=… update`` (apt.conf(5)).  apt checks signatures and hashes in
either case; where the packages come from is the system's configuration.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swtdx.guests.errors import FetchError
from swtdx.guests.progress import Reporter

_TOOLS: Final = ("apt-cache", "apt-get")
#: What apt would fetch first of a mirror.
_RELEASE_FILE: Final = re.compile(r"^'(?P<mirror>[^']*/)dists/[^']*/InRelease'", re.MULTILINE)
#: How often to look how much has arrived, in seconds.
_POLL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Package:
    """A package that can be downloaded."""

    name: str
    version: str
    size: int
    sha256: str


def apt_missing() -> str | None:
    """None where apt is; elsewhere what is missing."""
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"{' and '.join(absent)} not found" if absent else None


class Apt:
    """The system's apt, with its own package lists or with private ones.

    Args:
        state: a directory for private lists; it is used only by :meth:`use_private_lists`.
        suite: packages of this release of the distribution ("trixie", "sid") instead of those that the system
            is set up for, from the same mirror; there are private lists of it only.
    """

    def __init__(self, state: Path, suite: str | None = None) -> None:
        missing = apt_missing()
        if missing:
            raise FetchError(missing)
        self._state = state
        self._suite = suite
        self._options: list[str] = []

    @property
    def private(self) -> bool:
        """Whether private lists are in use."""
        return bool(self._options)

    def names(self, prefix: str) -> list[str]:
        """Names of known packages that start with ``prefix`` (some may have no version to download)."""
        return sorted(self._run("apt-cache", "pkgnames", prefix).split())

    def packages(self, names: Iterable[str]) -> list[Package]:
        """The candidate version of each of ``names`` that can be downloaded."""
        wanted = list(names)
        if not wanted:
            return []
        text = self._run("apt-cache", "show", "--no-all-versions", *wanted, check=False)
        found = []
        for stanza in text.split("\n\n"):
            fields = dict(
                line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " "
            )
            if "Filename" in fields and fields.get("Size", "").isdigit():
                size, digest = int(fields["Size"]), fields.get("SHA256", "")
                found.append(Package(fields["Package"], fields["Version"], size, digest))
        return found

    def download(self, package: Package, into: Path, progress: Reporter) -> Path:
        """Download ``package`` into the directory ``into``; return the file.

        Raises:
            FetchError: apt could not; its own words follow.
        """
        progress.step(f"fetching {package.name} {package.version}")
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                ["apt-get", *self._common(), "download", f"{package.name}={package.version}"],
                cwd=into,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_environment(),
            )
            try:
                while process.poll() is None:
                    progress.amount(_bytes_in(into, package.name), package.size)
                    time.sleep(_POLL)
            except BaseException:
                process.terminate()
                process.wait()
                raise
            errors.seek(0)
            words = errors.read().decode("utf-8", "replace")
        arrived = sorted(into.glob(f"{package.name}_*.deb"))
        if process.returncode or not arrived:
            raise FetchError(f"apt could not download {package.name} {package.version}: {_summary(words)}")
        progress.amount(package.size, package.size)
        return arrived[0]

    def use_private_lists(self, progress: Reporter) -> None:
        """Fetch package lists into the private directory and use them from now on.

        Raises:
            FetchError: apt could not reach or trust any of its sources.  That some of them fail, perhaps
                ones that have nothing for us, is no reason to give up.
        """
        progress.step("fetching package lists" + (f" of {self._suite}" if self._suite else ""))
        source = None if self._suite is None else self._source(self._suite)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (self._state / part).mkdir(parents=True, exist_ok=True)
        self._options = [
            *("-o", f"Dir::State={self._state}/state", "-o", f"Dir::State::lists={self._state}/state/lists"),
            *("-o", "Dir::State::status=/var/lib/dpkg/status", "-o", f"Dir::Cache={self._state}/cache"),
            *("-o", "Acquire::Languages=none", "-o", "APT::Update::Error-Mode=any"),
        ]
        if source is not None:
            sources = self._state / "sources.list"
            sources.write_text(source + "\n", "utf-8")
            self._options += ["-o", f"Dir::Etc::sourcelist={sources}", "-o", "Dir::Etc::sourceparts=-"]
        try:
            self._run("apt-get", "update")
        except FetchError:
            if not any((self._state / "state/lists").glob("*_Packages*")):
                raise

    def _source(self, suite: str) -> str:
        """The line of sources.list for another release, at the mirror that the system uses.

        Raises:
            FetchError: the system has no mirror of a whole distribution.
        """
        for found in _RELEASE_FILE.finditer(self._run("apt-get", "update", "--print-uris")):
            if "security" not in found["mirror"]:
                name = "ubuntu" if "ubuntu" in found["mirror"] else "debian"
                keyring = Path(f"/usr/share/keyrings/{name}-archive-keyring.gpg")
                trust = f"[signed-by={keyring}] " if keyring.is_file() else ""
                return f"deb {trust}{found['mirror']} {suite} main"
        raise FetchError(f"the system's package sources do not say where {suite} could be; see /etc/apt")

    def _common(self) -> Sequence[str]:
        # Run by root, apt would drop to a user who may not write into our directory.
        return ["-q", "-o", "APT::Sandbox::User=root", *self._options]

    def _run(self, tool: str, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [tool, *self._common(), *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
            env=_environment(),
        )
        if check and done.returncode:
            raise FetchError(f"`{tool} {arguments[0]}` failed: {_summary(done.stderr)}")
        return done.stdout


def _environment() -> dict[str, str]:
    """apt's answers in English, whatever the user speaks."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _bytes_in(directory: Path, name: str) -> int:
    try:
        return sum(path.stat().st_size for path in directory.glob(f"{name}_*"))
    except OSError:  # renamed between the two calls
        return 0


def _summary(words: str) -> str:
    """The lines of apt's complaint that say what is wrong."""
    lines = [line.strip() for line in words.splitlines() if line.startswith(("E:", "Err", "W: Failed"))]
    return "; ".join(lines) or words.strip() or "it did not say why"

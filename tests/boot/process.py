"""``swtdx run`` as a user runs it, watched from outside: when each line came, and what memory it took."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SWTDX = [sys.executable, "-m", "swtdx.cli.main"]
#: Longest that one boot may take on a busy machine, in seconds.
PATIENCE = 200
_ANON = re.compile(r"^Rss(?:Anon|File):\s+(\d+) kB$", re.MULTILINE)


def swtdx(*arguments: str, timeout: float = PATIENCE, **env: str) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    return subprocess.run(
        [*SWTDX, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env},
        check=False,
    )


@dataclass
class Watched:
    """What was seen of a process: its lines with their times of arrival, and its peak of memory (bytes)."""

    returncode: int = -1
    lines: list[tuple[float, str]] = field(default_factory=list)
    stderr: str = ""
    peak: int = 0

    def section(self, name: str) -> list[str]:
        """The lines after ``=== name`` up to the next such line."""
        return [text for _, text in self.timed_section(name)]

    def timed_section(self, name: str) -> list[tuple[float, str]]:
        """:meth:`section` with times."""
        texts = [text for _, text in self.lines]
        start = texts.index(f"=== {name}") + 1
        end = next((at for at in range(start, len(texts)) if texts[at].startswith("=== ")), len(texts))
        return self.lines[start:end]


def watched(*arguments: str, timeout: float = PATIENCE) -> Watched:
    """Run ``swtdx`` with ``arguments`` and watch it."""
    seen = Watched()
    process = subprocess.Popen(
        [*SWTDX, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    watchers = [
        threading.Thread(target=_watch_memory, args=(process, seen)),
        threading.Thread(target=lambda stream: errors.append(stream.read()), args=(process.stderr,)),
    ]
    for watcher in watchers:
        watcher.start()
    killer = threading.Timer(timeout, process.kill)
    killer.start()
    try:
        for line in process.stdout:
            seen.lines.append((time.monotonic(), line.rstrip("\n")))
        seen.returncode = process.wait()
    finally:
        killer.cancel()
        process.kill()
        for watcher in watchers:
            watcher.join()
        process.stdout.close()
        process.stderr.close()
    seen.stderr = "".join(errors)
    return seen


def _watch_memory(process: subprocess.Popen[str], seen: Watched) -> None:
    while process.poll() is None:
        seen.peak = max(seen.peak, memory_of(process.pid))
        time.sleep(0.05)


def memory_of(pid: int) -> int:
    """Bytes of memory that a process and its children take: what each has for itself, and every shared
    memory file once, however many have it mapped."""
    total = 0
    files: dict[int, int] = {}
    for one in [pid, *_children(pid)]:
        try:
            total += 1024 * sum(map(int, _ANON.findall(Path(f"/proc/{one}/status").read_text())))
            for link in Path(f"/proc/{one}/fd").iterdir():
                if os.readlink(link).startswith("/memfd:"):
                    about = os.stat(link)
                    files[about.st_ino] = about.st_blocks * 512
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, and what a zombie had is root's
    return total + sum(files.values())


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []

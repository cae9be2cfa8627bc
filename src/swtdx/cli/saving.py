"""``swtdx run --snapshot-to``: a TD runs until it is to be saved, and is."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from swtdx import __about__
from swtdx.__about__ import __version__
from swtdx.cli.starting import Writing
from swtdx.cli.warm_options import WarmWishes
from swtdx.machine.engine.qemu.process import find_qemu
from swtdx.vmm.agent import AgentError, GuestAgent, Ports
from swtdx.vmm.result import EndReason, RunResult

if TYPE_CHECKING:
    from swtdx.cli.deadline import Deadline
    from swtdx.platform import Platform
    from swtdx.vmm.console import Console
    from swtdx.vmm.launch import Launch


class Saving:
    """How and when a TD is to be saved.

    Args:
        path: where.
        wishes: when.
        label, cmdline, memory: what the file says of it (:class:`swtdx.warm.About`).
        command: to be run first, in a guest that serves requests.
        token: of the command that the guest runs by itself.
    """

    def __init__(
        self,
        path: Path,
        wishes: WarmWishes,
        label: str,
        cmdline: str,
        memory: int,
        command: str | None = None,
        token: str = "",
    ) -> None:
        self.path = path
        self._wishes = wishes
        self._about = (label, cmdline, memory)
        self._command = command
        self._token = token
        self._agent = None if self.unprepared else GuestAgent()
        self._seen = bytearray()
        self._found = threading.Event()
        self._launch: Launch | None = None
        #: The exit status of the command, if that is why nothing was saved.
        self.failed: int | None = None

    @property
    def unprepared(self) -> bool:
        """The guest is saved in the middle of whatever it does."""
        return self._wishes.at is not None or self._wishes.when is not None

    @property
    def ports(self) -> Ports:
        """The channels that the guest has to have."""
        return () if self._agent is None else self._agent.ports

    def listening(self, console: Console) -> Console:
        """``console``, listened to if the time to save is told there."""
        return console if self._wishes.when is None else Writing(console, self._watch(console.write))

    def _watch(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """``write``, listening to what the guest's console shows."""
        text = (self._wishes.when or "").encode("utf-8", "surrogateescape")

        def listening(data: bytes) -> None:
            write(data)
            self._seen += data
            if text in self._seen and not self._found.is_set():
                self._found.set()
                if self._launch is not None:
                    self._launch.runner.stop(EndReason.PAUSED)
            del self._seen[: -len(text)]

        return listening

    def run(self, platform: Platform, launch: Launch, deadline: Deadline) -> RunResult:
        """Run the TD until it is saved; how that ended."""
        self._launch = launch
        early = self._run_until(launch, deadline)
        if early is not None:
            return early
        from swtdx import warm

        label, cmdline, memory = self._about
        warm.save(
            self.path, platform, launch,
            label=label, cmdline=cmdline, memory=memory, waits=self._agent is not None, token=self._token,
        )  # fmt: skip
        return RunResult(EndReason.STOPPED, f"saved in {self.path}", stats=launch.runner.stats())

    def _run_until(self, launch: Launch, deadline: Deadline) -> RunResult | None:
        """The end, if it comes before the time to save."""
        left = deadline.left()
        if self._agent is not None:
            return self._prepare(self._agent, launch, deadline)
        at = self._wishes.at
        result = launch.run(left if at is None else at if left is None else min(at, left))
        waited_for = (
            EndReason.TIMEOUT if at is not None and (left is None or at <= left) else EndReason.PAUSED
        )
        return None if result.reason is waited_for else result

    def _prepare(self, agent: GuestAgent, launch: Launch, deadline: Deadline) -> RunResult | None:
        """Have a guest that serves requests come up, and run a command first."""
        from swtdx.guests.agent import run_request
        from swtdx.vmm.console import write_all

        agent.bind(launch)
        try:
            agent.wait_ready(deadline.left())
            if self._command is None:
                return None
            answer = agent.ask(run_request(self._command, merge=False), deadline.left(), "the command")
        except AgentError as error:
            return error.result
        for descriptor, part in ((1, "OUT"), (2, "ERR")):
            write_all(descriptor, answer.parts.get(part, b""))
        if not answer.status:
            return None
        self.failed = answer.status
        return RunResult(EndReason.STOPPED, "the command failed, and nothing was saved")


def snapshot_key(kernel: bytes, initrd: bytes, *about: object) -> str:
    """What a snapshot of --warm is called: another name for all that could make it another TD.

    ``about`` says what that is, besides the kernel, its initrd, this swtdx and QEMU.
    """
    digest = hashlib.sha256()
    own = (__version__, _sources(), find_qemu()[1], *about)
    for part in (repr(own).encode(), kernel, initrd):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:32]


def _sources() -> list[tuple[str, int, int]]:
    """The files of this swtdx: in a checkout they change while its version stays."""
    found = []
    for folder, _, names in os.walk(Path(__about__.__file__).parent):
        for name in names:
            if name.endswith((".py", ".sh", ".bin")):
                about = os.stat(os.path.join(folder, name))
                found.append((name, about.st_size, about.st_mtime_ns))
    return sorted(found)


def cached(key: str) -> Path:
    """Where ``--warm`` keeps the snapshot called ``key``; its folder is made."""
    from swtdx.guests.cache import cache_root

    folder = cache_root() / "warm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"{key}.td"


#: Snapshots that --warm keeps.
_KEPT: Final = 8


def tidy(path: Path) -> None:
    """``path`` is used: forget those that were not for longest."""
    os.utime(path)
    others = sorted(path.parent.glob("*.td"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in others[_KEPT:]:
        old.unlink(missing_ok=True)

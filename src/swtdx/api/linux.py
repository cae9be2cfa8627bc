"""TDs with an unmodified Linux that runs one command after another."""

from __future__ import annotations

import contextlib
import logging
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swtdx.api.folders import pack, unpack
from swtdx.api.td import Td, TdEnded
from swtdx.guests import agent
from swtdx.guests.added import Addition
from swtdx.guests.choice import Wishes, choose
from swtdx.guests.initramfs import Serve
from swtdx.guests.quote_job import REPORTDATA, command, parse_output
from swtdx.vmm.agent import AgentError, GuestAgent
from swtdx.vmm.console import Guest
from swtdx.vmm.errors import VmmError
from swtdx.vmm.launch import Launch, LaunchConfig
from swtdx.vmm.result import RunResult
from swtdx.vmm.td_params import TdConfig

if TYPE_CHECKING:
    from swtdx.api.attesting import Quote
    from swtdx.api.platform import Platform

_LOG: Final = logging.getLogger("swtdx")
#: Seconds that the guest has to end a command whose time is over, before the TD counts as lost.
_GRACE: Final = 30.0
#: Where copies go when nothing is said.
_HOME: Final = "/root"


class CommandFailed(RuntimeError):
    """A command did not end with status 0; ``completed`` has its output."""

    def __init__(self, command: str, completed: Completed) -> None:
        said = completed.stderr.decode("utf-8", "replace").strip() or completed.output.strip()
        super().__init__(f"{command!r} ended with status {completed.status}: {said}")
        self.completed = completed


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended: its exit status, 0 to 255, and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def output(self) -> str:
        """Standard output as text (UTF-8; what is none is replaced)."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether the status is 0."""
        return self.status == 0


class Sink:
    """The console of a TD that has no user."""

    size = None

    def __init__(self, into: bytearray) -> None:
        self._into = into

    def write(self, data: bytes) -> None:
        """See :class:`swtdx.vmm.console.Console`."""
        self._into += data

    @contextlib.contextmanager
    def attached(self, guest: Guest) -> Iterator[None]:
        """See :class:`swtdx.vmm.console.Console`."""
        yield


class LinuxTd(Td):
    """A TD with Linux.  See ``platform.linux``.

    The guest runs while one of its methods does, and stands still in between: hooks and assertions in them
    run on the caller's thread.  Its clock goes on, as if its host had been asleep.
    """

    def __init__(
        self,
        platform: Platform,
        launch: Launch,
        serving: GuestAgent,
        output: bytearray,
        *,
        kernel: str,
        cmdline: str,
        memory: int,
        owns: bool = False,
    ) -> None:
        super().__init__(platform, launch.td, launch.io, launch.runner)
        self._owns = owns
        self._launch = launch
        self._agent = serving
        self._console = output
        #: The kernel's release, as ``uname -r`` prints it.
        self.kernel = kernel
        #: The kernel's command line.
        self.cmdline = cmdline
        #: Bytes of RAM.
        self.memory = memory

    def last_words(self) -> str:
        """The last lines on the console, for a message."""
        lines = self.console.replace(b"\r", b"").decode("utf-8", "replace").strip().splitlines()[-5:]
        return "".join(f"\n  {line}" for line in lines)

    def _ask(self, request: agent.Request, timeout: float | None, what: str) -> agent.Answer:
        self._need_open()
        if self.result is not None:
            raise TdEnded(f"the TD has ended: {self.result}", self.result)
        try:
            return self._agent.ask(request, timeout, what)
        except AgentError as error:
            self.result = error.result
            raise TdEnded(f"{error}{self.last_words()}", error.result) from None

    # ------------------------------------------------------------------ commands
    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        timeout: float | None = 60.0,
        check: bool = False,
        merge: bool = False,
    ) -> Completed:
        """Run ``command`` by ``sh -c`` as root in /root, and wait until it ends.

        What it leaves running goes on, while later commands run.

        Args:
            command: lines for the shell.
            stdin: what it reads.
            timeout: seconds after which the guest kills it, with all of its session; None for never.
            check: a status that is not 0 is an error.
            merge: its standard error goes to its standard output.

        Raises:
            TimeoutError: it took longer; it was killed, and the TD can be used.
            CommandFailed: ``check``, and its status is not 0.
            GuestError: it is no command (empty, or with a NUL byte).
            TdEnded: the TD ended, or had; the message says how.
        """
        request = agent.run_request(command, stdin, timeout, merge=merge)
        limit = None if timeout is None else timeout + _GRACE
        answer = self._ask(request, limit, f"the command {command!r}")
        done = Completed(answer.status or 0, answer.parts.get("OUT", b""), answer.parts.get("ERR", b""))
        if answer.killed:
            raise TimeoutError(f"{command!r} was killed after {timeout:g} s; it had printed {done.output!r}")
        if check and not done.ok:
            raise CommandFailed(command, done)
        return done

    # ------------------------------------------------------------------ files
    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make the file ``path`` in the guest, and the folders above it.

        Raises:
            OSError: the guest cannot; it says why.
            TdEnded: see :meth:`run`.
        """
        self._done(self._ask(agent.put_request(path, data, mode), None, f"writing {path}"), path)

    def read(self, path: str) -> bytes:
        """A file of the guest; of a folder a tar archive.

        Raises:
            OSError: the guest cannot; it says why.
            TdEnded: see :meth:`run`.
        """
        return self._get(path)[1]

    def copy_to(self, source: str | Path, target: str = "") -> str:
        """Copy a file or folder into the guest; where it is there.

        Args:
            source: here.
            target: its path in the guest; a name in /root by default.

        Raises:
            OSError: ``source`` cannot be read, or the guest cannot store it.
            TdEnded: see :meth:`run`.
        """
        source = Path(source)
        target = target or f"{_HOME}/{source.resolve().name}"
        if source.is_dir():
            request = agent.put_request(target, pack(source), tree=True)
            self._done(self._ask(request, None, f"copying {source}"), target)
        else:
            self.write(target, source.read_bytes(), stat.S_IMODE(source.stat().st_mode))
        return target

    def copy_from(self, path: str, target: str | Path = ".") -> Path:
        """Copy a file or folder out of the guest; where it is here.

        Args:
            path: in the guest.
            target: here; if it is a folder, a file goes into it by its own name, and a folder's contents go
                into it.

        Raises:
            OSError: the guest cannot read it, or it cannot be stored here.
            TdEnded: see :meth:`run`.
        """
        kind, data = self._get(path)
        target = Path(target)
        if kind == "TREE":
            unpack(data, target)
            return target
        if target.is_dir():
            target = target / Path(path).name
        target.write_bytes(data)
        return target

    def _get(self, path: str) -> tuple[str, bytes]:
        answer = self._ask(agent.get_request(path), None, f"reading {path}")
        self._done(answer, path)
        kind = "TREE" if "TREE" in answer.parts else "FILE"
        return kind, answer.parts.get(kind, b"")

    @staticmethod
    def _done(answer: agent.Answer, path: str) -> None:
        if answer.failure is not None:
            raise OSError(f"{path} in the guest: {answer.failure}")

    # ------------------------------------------------------------------ attestation
    def quote(self, report_data: bytes = b"") -> Quote:
        """Have Linux make a quote, through configfs-tsm.

        Args:
            report_data: REPORTDATA, 64 bytes at most; zeros fill it up.

        Raises:
            ValueError: ``report_data`` is longer.
            CommandFailed: the guest got no quote; the message says why.
            TdEnded: see :meth:`run`.
        """
        if len(report_data) > REPORTDATA:
            raise ValueError(f"REPORTDATA has {REPORTDATA} bytes; these are {len(report_data)}")
        from swtdx.api.attesting import Quote

        words = f"({command(report_data.ljust(REPORTDATA, bytes(1)))}); s=$?; cd /; "
        words += "rmdir /sys/kernel/config/tsm/report/swtdx 2>/dev/null; exit $s"
        done = self.run(words, merge=True)
        answer = parse_output(done.stdout)
        if isinstance(answer, str):
            raise CommandFailed("making a quote", Completed(done.status or 1, b"", answer.encode()))
        return Quote(answer.quote)

    # ------------------------------------------------------------------ snapshots
    def save(self, path: str | Path) -> None:
        """Write the TD as it is now, with its machine, to a file that ``restore`` goes on from.

        The file holds everything in plain, the TD's memory and keys as well, and is readable by its owner
        alone.  The TD can be used further.

        Raises:
            SnapshotError: the file cannot be written.
            VmmError: something is under way that cannot be saved.
            TdEnded: see :meth:`run`.
        """
        from swtdx import warm

        self._need_open()
        if self.platform.tds != (self,):
            raise VmmError("a TD is saved with its machine, on which there may be no other TD: close those")
        if self.result is not None:
            raise TdEnded(f"the TD has ended: {self.result}", self.result)
        warm.save(
            path, self.platform.internals, self._launch,
            label=self.kernel, cmdline=self.cmdline, memory=self.memory, waits=True,
        )  # fmt: skip

    # ------------------------------------------------------------------ the end
    def close(self) -> None:
        """See :class:`Td`; a TD that came out of a file has a machine of its own, which is switched off."""
        if self._owns and not self.closed:
            self.platform.close()
        else:
            super().close()

    def off(self, timeout: float | None = 30.0) -> RunResult:
        """Have the guest switch off by itself; how it ended.

        Raises:
            TdEnded: it had ended before.
        """
        self._need_open()
        if self.result is not None:
            raise TdEnded(f"the TD has ended: {self.result}", self.result)
        self.result = self._agent.off(timeout)
        return self.result


def boot_linux(
    platform: Platform,
    *,
    kernel: str | Path | None = None,
    initrd: str | Path | None = None,
    version: str | None = None,
    append: str = "",
    memory: int = 512 << 20,
    vcpus: int = 1,
    debug: bool = False,
    add: Mapping[str | Path, str] | None = None,
    timeout: float = 120.0,
    config: Mapping[str, Any] | None = None,
) -> LinuxTd:
    """See ``Platform.linux``."""
    if platform.engine != "qemu":
        raise ValueError("Linux is machine code: make the platform with Platform(), not 'scripted'")
    wishes = Wishes(
        None if kernel is None else Path(kernel),
        None if initrd is None else Path(initrd),
        version,
        None,
        append,
        added=tuple(Addition(Path(source), target) for source, target in (add or {}).items()),
    )
    boot = choose(wishes, Serve(), "", _LOG.info)
    settings = TdConfig(vcpus=vcpus, attributes=int(debug), **dict(config or {}))
    serving, output = GuestAgent(), bytearray()
    launch_config = LaunchConfig(
        boot.kernel,
        boot.initrd,
        boot.cmdline,
        memory,
        td=settings,
        ports=(serving.port,),
        serial=output.extend,
        quote_service=platform.quote_service,
    )
    launch = Launch(platform.hypervisor.internals, launch_config, Sink(output))
    try:
        td = LinuxTd(
            platform, launch, serving, output, kernel=boot.label, cmdline=boot.cmdline, memory=memory
        )
        serving.bind(launch)
        try:
            serving.wait_ready(timeout)
        except AgentError as error:
            said = f"Linux did not come up: {error.result}{td.last_words()}"
            raise TdEnded(said, error.result) from None
    except BaseException:
        launch.close()
        raise
    return td

"""Linux in a TD, in this process, which can be stopped, looked at, attacked, and run on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from swtdx.guests.guest import Guest
from swtdx.guests.initramfs import Exec, default_cmdline
from swtdx.vmm.command_io import CommandIo
from swtdx.vmm.hypervisor import Hypervisor
from swtdx.vmm.launch import Launch, LaunchConfig
from swtdx.vmm.processor import Processor
from swtdx.vmm.result import EndReason, RunResult
from swtdx.vmm.td_params import TdConfig


class Held:
    """A TD that runs ``command``.  It is a console, too: it hears what the command prints.

    Args:
        processors: where it runs.
        config: of the TD (see TdConfig).
    """

    size = None

    def __init__(
        self,
        hypervisor: Hypervisor,
        guest: Guest,
        command: str,
        processors: list[Processor],
        memory: int,
        **config: Any,
    ) -> None:
        self.output = ""
        self.log = bytearray()
        self._awaited: str | None = None
        self._said = threading.Event()
        job = Exec(command)
        settings = LaunchConfig(
            guest.kernel_image(),
            guest.initramfs(job),
            default_cmdline(job),
            memory=memory,
            td=TdConfig(vcpus=config.pop("vcpus", 1), **config),
            command=CommandIo(job.marker_token, self.write),
            log=self.log.extend,
        )
        self.launch = Launch(hypervisor, settings, self, processors)
        self.td = self.launch.td

    def write(self, data: bytes) -> None:
        """See :class:`swtdx.vmm.console.Console`."""
        self.output += data.decode()
        if self._awaited is not None and self._awaited in self.output:
            self._awaited = None
            self._said.set()
            self.launch.runner.stop(EndReason.TIMEOUT, "it has said what was waited for")

    @contextlib.contextmanager
    def attached(self, _guest: object) -> Iterator[None]:
        """See :class:`swtdx.vmm.console.Console`."""
        yield

    def run_until(self, text: str, timeout: float = 150) -> None:
        """Let it run until it prints ``text``."""
        self.output, self._awaited = "", text
        self._said.clear()
        result = self.launch.run(timeout)
        assert self._said.is_set(), (result, self.output, bytes(self.log[-2000:]))
        assert result.reason is EndReason.TIMEOUT, result

    def run(self, timeout: float = 150) -> RunResult:
        """Let it run to its end."""
        self.output = ""
        return self.launch.run(timeout)

    def finish(self, result: RunResult) -> RunResult:
        """Take it down; the exit status of the command is in the result."""
        return self.launch.finish(result)


def at_once(*actions: Any) -> list[Any]:
    """Call all ``actions`` at the same time, each on a thread; what they return, or the first error."""
    results: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []

    def call(number: int) -> None:
        try:
            results[number] = actions[number]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results

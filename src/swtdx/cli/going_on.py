"""``swtdx run --from``: going on with a TD that was saved."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from swtdx.cli.failures import complain

if TYPE_CHECKING:
    from swtdx.cli.deadline import Deadline
    from swtdx.vmm.agent import GuestAgent
    from swtdx.vmm.command_io import CommandIo
    from swtdx.vmm.console import Console
    from swtdx.vmm.launch import Launch
    from swtdx.vmm.result import RunResult
    from swtdx.warm import About, SavedTd

#: Random bytes for the guest's kernel.
_SEED_BYTES = 64


def check(about: About, path: Path, command: str | None) -> None:
    """Refuse what does not go with the saved TD.

    Raises:
        click.UsageError: by name.
    """
    if about.waits and command is None:
        raise click.UsageError(f"the TD in {path} waits for a command: give it one with --exec")
    if not about.waits and command is not None:
        raise click.UsageError(f"the TD in {path} was saved at work, and takes no command: leave out --exec")
    context = click.get_current_context()
    for option, known in (("memory", about.memory), ("vcpus", about.vcpus), ("model", about.model)):
        given = context.params[option]
        said = context.get_parameter_source(option) is ParameterSource.COMMANDLINE
        if said and given != known:
            shown = f"{about.memory >> 20}M" if option == "memory" else known
            raise click.UsageError(f"the TD in {path} was saved with --{option} {shown}: leave that out")


class GoingOn:
    """A run of a saved TD.

    Args:
        saved: the file.
        command: to be run, if it waits for one; ``io`` says where its streams lead.
        gets: files that are wanted afterwards.
        log, serial, trace: take what else comes of it.
        qgs: where quotes come from.
    """

    def __init__(
        self,
        saved: SavedTd,
        command: str | None,
        io: CommandIo | None,
        gets: tuple[str, ...],
        log: Callable[[bytes], None] | None,
        serial: Callable[[bytes], None] | None,
        trace: Callable[[bytes], None] | None,
        qgs: str | None,
    ) -> None:
        self._saved = saved
        self._command = command
        self._io = io
        self._gets = gets
        self._log = log
        self._serial = serial
        self._trace = trace
        self._qgs = qgs

    def run(self, console: Callable[[], Console], deadline: Deadline) -> tuple[RunResult, dict[str, Any]]:
        """Go on to the end: how it ended, and how its quote service did."""
        with self._saved.platform() as platform:
            # Imported only now: QEMU comes up meanwhile.
            from swtdx.cli.quote_service import ToldQuotes
            from swtdx.cli.tracing import tracing
            from swtdx.quoting import Quoting
            from swtdx.vmm.agent import GuestAgent
            from swtdx.vmm.launch import LaunchConfig

            quotes = ToldQuotes(Quoting(platform, self._qgs), self._qgs, complain)
            agent = GuestAgent()
            config = LaunchConfig(
                kernel=None,
                command=self._io,
                log=self._log if self._io is not None else None,
                serial=self._serial,
                ports=(agent.port,) if self._command is not None else (),
                quote_service=quotes,
                teardown=False,
            )
            with tracing(platform, self._trace):
                launch = self._saved.launch(platform, config, console())
                gc.freeze()
                gc.enable()
                result = self._go(launch, agent, deadline)
            return launch.finish(result), quotes.document()

    def _go(self, launch: Launch, agent: GuestAgent, deadline: Deadline) -> RunResult:
        from swtdx.vmm.result import EndReason

        io, ended = self._io, False
        if self._command is not None and io is not None:
            from swtdx.guests.agent import exec_request, renew_request

            def end() -> None:
                nonlocal ended
                ended = True
                launch.runner.stop(EndReason.PAUSED)

            io.ended = end
            agent.bind(launch, ready=True)
            agent.tell(
                renew_request(time.time(), os.urandom(_SEED_BYTES)),
                exec_request(
                    self._command, self._gets, stderr=io.stderr is not None, stdin=io.stdin is not None
                ),
            )
        while True:
            result = launch.run(deadline.left())
            if result.reason is not EndReason.PAUSED or ended:
                return result
            if agent.failure is not None:
                complain(f"the guest's clock and random source are those of the snapshot: {agent.failure}")

"""A hypervisor's end of a guest that serves requests one after another (:mod:`swtdx.guests.agent`).

Between two requests the TD stands still: none of its vCPUs is entered.  A request runs it until its answer
is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from swtdx.devices.virtio.ports import PortConfig, VirtioPorts
from swtdx.guests.agent import NAME, OFF, AgentStream, Answer, Request
from swtdx.guests.exec_channels import CTL, ERR, IN, OUT
from swtdx.vmm.errors import VmmError
from swtdx.vmm.launch import Launch
from swtdx.vmm.result import EndReason, RunResult

#: Bytes of a request's body that are handed to the channel at once.
_PIECE: Final = 1 << 20


#: Channels of a TD, as ``LaunchConfig.ports`` takes them.
Ports = tuple[PortConfig, ...]


class AgentError(VmmError):
    """The TD cannot serve any more; ``result`` says how it ended, or that the time was over."""

    def __init__(self, message: str, result: RunResult) -> None:
        super().__init__(message)
        self.result = result


class GuestAgent:
    """Made before the launch, whose ``LaunchConfig.ports`` get :attr:`port`; then bound to it."""

    def __init__(self) -> None:
        self.port = PortConfig(NAME, self._heard)
        self._stream = AgentStream()
        self._launch: Launch | None = None
        self._body = b""
        #: How the TD's last run ended.
        self.result: RunResult | None = None

    @property
    def ports(self) -> tuple[PortConfig, ...]:
        """:attr:`port`, and behind others those of a command's streams, on which nobody listens yet.

        A TD that is saved so can be gone on with by a command whose streams are carried as it runs
        (``exec_request``).
        """

        def nobody(_data: bytes) -> None:
            """Nothing is said there before there is a command."""

        return (*(PortConfig(name, nobody) for name in (OUT, ERR, IN, CTL)), self.port)

    def bind(self, launch: Launch, *, ready: bool = False) -> None:
        """The TD is built.  ``ready``: it is one that waits for requests already."""
        self._launch = launch
        self._stream.ready = ready

    # ------------------------------------------------------------------ on a vCPU's thread
    def _heard(self, data: bytes) -> None:
        stream = self._stream
        was_ready = stream.ready
        stream.feed(data)
        launch = self._launch
        if launch is None:
            return
        if stream.more:
            stream.more = False
            body, self._body = self._body, b""
            for at in range(0, len(body), _PIECE):
                _ports(launch).send_to(NAME, body[at : at + _PIECE])
        if stream.answer is not None or (stream.ready and not was_ready):
            launch.runner.stop(EndReason.PAUSED)

    # ------------------------------------------------------------------ the caller's thread
    def wait_ready(self, timeout: float | None = None) -> None:
        """Run the TD until it can take requests, for ``timeout`` seconds at most.

        Raises:
            AgentError: it ended before, or has no such channel.
        """
        self._run_until(lambda: self._stream.ready, timeout, "its boot")

    def ask(self, request: Request, timeout: float | None = None, what: str = "a request") -> Answer:
        """Make a request, and run the TD until the answer is there, for ``timeout`` seconds at most.

        Raises:
            AgentError: the TD has ended, or the time is over: then it cannot be asked any more.
        """
        stream = self._stream
        stream.expect()
        self._body = request.body
        _ports(self._bound).send_to(NAME, request.head)
        self._run_until(lambda: stream.answer is not None, timeout, what)
        assert stream.answer is not None
        return stream.answer

    def tell(self, *requests: Request) -> None:
        """Make requests without bodies, one behind the other, when the TD runs next; no answer is awaited."""
        self._stream.expect()
        for request in requests:
            _ports(self._bound).send_to(NAME, request.head)

    @property
    def failure(self) -> str | None:
        """Why the latest request was not served, in the guest's words."""
        answer = self._stream.answer
        return None if answer is None else answer.failure

    def off(self, timeout: float | None = None) -> RunResult:
        """Have the guest switch off; how it ended."""
        self._stream.expect()
        _ports(self._bound).send_to(NAME, OFF.head)
        return self._bound.run(timeout)

    @property
    def _bound(self) -> Launch:
        if self._launch is None:
            raise RuntimeError("the agent is bound to no TD yet")
        return self._launch

    def _run_until(self, done: Callable[[], bool], timeout: float | None, what: str) -> None:
        launch = self._bound
        end = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None if end is None else max(0.001, end - time.monotonic())
            self.result = result = launch.run(left)
            if result.reason is EndReason.PAUSED or done():
                continue
            raise AgentError(f"the TD ended during {what}: {result}", result)


def _ports(launch: Launch) -> VirtioPorts:
    device = launch.io.board.console
    if not isinstance(device, VirtioPorts):
        raise VmmError("this TD's board has no virtio console with ports")
    return device

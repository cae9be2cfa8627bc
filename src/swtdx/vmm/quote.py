"""GetQuote: a guest's TDREPORT goes to a quoting service and a quote comes back, while the guest runs.

The guest hands over a shared buffer (attestation.md §8): version, status, in_len, out_len, data.  The
hypervisor answers at once with the status "in flight", and later writes the quote, then the header, and
raises the vector that the guest asked for with SetupEventNotifyInterrupt.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import Callable
from typing import Final

from swtdx.arch import ghci
from swtdx.arch.units import PAGE
from swtdx.vmm.vcpu import Vcpu

_HEADER: Final = struct.Struct("<QQII")
_VERSION: Final = 1
SUCCESS: Final = ghci.QUOTE_SUCCESS
IN_FLIGHT: Final = ghci.QUOTE_IN_FLIGHT
ERROR: Final = ghci.QUOTE_ERROR
UNAVAILABLE: Final = ghci.QUOTE_UNAVAILABLE
#: QEMU's limit of requests at a time.
_MOST: Final = 16

#: Makes a quote of what a guest handed in (normally a TDREPORT, 1024 bytes).  It raises ConnectionError
#: if there is no service to ask, and whatever else it likes if this request gets no quote.
QuoteService = Callable[[bytes], bytes]


class QuoteRequests:
    """The GetQuote requests of one TD.

    Args:
        service: makes quotes, on threads of ours; None if there is no quoting service.
        read, write: shared memory by GPA without the shared bit; both raise where there is none.
        wake: called on any thread when :meth:`poll` has something to do.
    """

    def __init__(
        self,
        service: QuoteService | None,
        read: Callable[[int, int], bytes],
        write: Callable[[int, bytes], None],
        wake: Callable[[], None],
    ) -> None:
        self._service = service
        self._read = read
        self._write = write
        self._wake = wake
        self._done: queue.SimpleQueue[tuple[Vcpu, int, int, int, bytes]] = queue.SimpleQueue()
        self._flying = 0

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return self._flying > 0

    def submit(self, vcpu: Vcpu, gpa: int, size: int) -> int:
        """Take a request for the buffer of ``size`` bytes at ``gpa``; the status for R10.

        What is refused and how: as QEMU does (ghci.md §7).
        """
        if gpa % PAGE or size % PAGE:
            return ghci.ALIGN_ERROR
        if not 0 < size <= ghci.QUOTE_BUFFER_LIMIT:
            return ghci.INVALID_OPERAND
        try:
            version, _, in_len, out_len = _HEADER.unpack(self._read(gpa, _HEADER.size))
            if version != _VERSION or in_len > size - _HEADER.size:
                return ghci.INVALID_OPERAND
            if self._service is not None and self._flying >= _MOST:
                return ghci.RETRY
            request = self._read(gpa + _HEADER.size, in_len)
            status = UNAVAILABLE if self._service is None else IN_FLIGHT
            self._write(gpa, _HEADER.pack(version, status, in_len, 0 if self._service else out_len))
        except Exception:
            return ghci.INVALID_OPERAND
        if self._service is not None:
            self._flying += 1
            work = threading.Thread(
                target=self._work, args=(self._service, vcpu, gpa, size, request), daemon=True
            )
            work.start()
        return ghci.SUCCESS

    def _work(self, service: QuoteService, vcpu: Vcpu, gpa: int, size: int, request: bytes) -> None:
        status, quote = SUCCESS, b""
        try:
            quote = service(request)
        except ConnectionError:
            status = UNAVAILABLE
        except Exception:
            status = ERROR
        if len(quote) > size - _HEADER.size:
            status, quote = ERROR, b""
        self._done.put((vcpu, gpa, status, len(request), quote))
        self._wake()

    def poll(self) -> None:
        """Deliver what is ready.  On the thread that runs vCPUs."""
        while not self._done.empty():
            vcpu, gpa, status, in_len, quote = self._done.get()
            self._flying -= 1
            self._deliver(gpa, status, in_len, quote)
            if vcpu.event_vector is not None:
                vcpu.post(vcpu.event_vector)

    def _deliver(self, gpa: int, status: int, in_len: int, quote: bytes) -> None:
        try:
            if quote:
                self._write(gpa + _HEADER.size, quote)
            # The lengths first, the status last: the guest polls the status.
            self._write(gpa + 16, struct.pack("<II", in_len, len(quote)))
            self._write(gpa + 8, struct.pack("<Q", status))
        except Exception:
            return  # the guest took the buffer back; it has only itself to blame

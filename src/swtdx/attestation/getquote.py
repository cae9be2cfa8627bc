"""TDVMCALL<GetQuote>: the buffer a TD shares with the hypervisor, and what goes in and out of it.

Pure functions: the hypervisor reads guest memory, asks here what to do, and writes what it is told.
Layout and rules: GHCI 1.5 as implemented by Linux (``tdx-guest.c``), and QEMU's ``tdx.c``:
attestation.md section 8 and ghci.md section 7 of the project's reference.

A hypervisor does this:

1. ``admit`` with the first bytes of the buffer, before it answers the TDVMCALL: gives R10 and, when
   the request is taken, that "in flight" must be written to the buffer first;
2. ``answer`` (or any other way to a quote) with the request, whenever it likes;
3. ``complete``'s writes in their order (data before header, so that a TD that polls never reads half
   a quote), then the TD's notification interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from swtdx.arch.layout import Field, Layout

from .errors import AttestationError, QgsError
from .qgs import messages
from .tdreport import TDREPORT_SIZE

BUFFER: Final = Layout(
    "GetQuote buffer",
    24,
    version=Field(0, 8, "1"),
    status=Field(8, 8),
    in_len=Field(16, 4, "bytes of data from the TD"),
    out_len=Field(20, 4, "bytes of data for the TD"),
)

#: Status field: what a TD sees.
SUCCESS: Final = 0
IN_FLIGHT: Final = 0xFFFF_FFFF_FFFF_FFFF
ERROR: Final = 0x8000_0000_0000_0000
SERVICE_UNAVAILABLE: Final = 0x8000_0000_0000_0001

#: R10 of the TDVMCALL.
TDVMCALL_SUCCESS: Final = 0
TDVMCALL_RETRY: Final = 1
TDVMCALL_INVALID_OPERAND: Final = 0x8000_0000_0000_0000
TDVMCALL_ALIGN_ERROR: Final = 0x8000_0000_0000_0002

#: Largest buffer that is accepted, and most requests in flight, as in QEMU.
MAX_BUFFER: Final = 128 * 1024
MAX_IN_FLIGHT: Final = 16

_PAGE: Final = 4096


@dataclass(frozen=True)
class Write:
    """Bytes to put into the shared buffer, at an offset from its start."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Request:
    """A GetQuote request that was taken: the data the TD sent, and how much room the buffer has."""

    data: bytes
    room: int


@dataclass(frozen=True)
class Admission:
    """What to answer at once: R10, what to write first, and the request if there is one to serve."""

    r10: int
    writes: tuple[Write, ...] = ()
    request: Request | None = None


def admit(
    gpa: int,
    size: int,
    read: Callable[[int, int], bytes],
    *,
    in_flight: int = 0,
    available: bool = True,
) -> Admission:
    """Look at a request.

    Args:
        gpa: R12, the buffer's guest-physical address, shared bit removed.
        size: R13, the buffer's size in bytes.
        read: reads (offset in the buffer, length) of the buffer; called only for a well-placed one.
        in_flight: how many requests the hypervisor is serving.
        available: whether there is a service to ask.
    """
    if gpa % _PAGE or size % _PAGE:
        return Admission(TDVMCALL_ALIGN_ERROR)
    if not size or size > MAX_BUFFER:
        return Admission(TDVMCALL_INVALID_OPERAND)
    header = read(0, BUFFER.size)
    in_len = BUFFER.in_len.get(header)
    if BUFFER.version.get(header) != 1 or in_len > size - BUFFER.size:
        return Admission(TDVMCALL_INVALID_OPERAND)
    if in_flight >= MAX_IN_FLIGHT:
        return Admission(TDVMCALL_RETRY)
    request = Request(read(BUFFER.size, in_len), size - BUFFER.size)
    if not available:
        return Admission(TDVMCALL_SUCCESS, complete(request, SERVICE_UNAVAILABLE))
    return Admission(TDVMCALL_SUCCESS, (Write(8, IN_FLIGHT.to_bytes(8, "little")),), request)


def complete(request: Request, status: int, data: bytes = b"") -> tuple[Write, ...]:
    """The writes that finish a request, in the order in which to do them.

    A quote that does not fit turns into an error.
    """
    if len(data) > request.room:
        status, data = ERROR, b""
    lengths = len(request.data).to_bytes(4, "little") + len(data).to_bytes(4, "little")
    header = Write(8, status.to_bytes(8, "little") + lengths)
    return (Write(BUFFER.size, data), header) if data else (header,)


def answer(request: Request, exchange: Callable[[bytes], bytes]) -> tuple[Write, ...]:
    """Serve a request through a quote generation service, and return the writes that finish it.

    The data of a TD is a bare TDREPORT (Linux) and gets a bare quote, or is a length-prefixed QGS
    message (Intel's ``libtdx_attest``) and gets one.

    Args:
        request: from :func:`admit`.
        exchange: sends a QGS message and returns the answer, both without length prefix; raises
            :class:`QgsError` when it cannot (``qgs.client.QgsClient.exchange``, or in one process
            ``lambda message: qgs.server.respond(message, enclave)``).
    """
    data = request.data
    try:
        if len(data) == TDREPORT_SIZE:
            quote = messages.parse_quote_response(exchange(messages.quote_request(data)))
            return complete(request, SUCCESS, quote)
        if len(data) < 4 or int.from_bytes(data[:4], "big") != len(data) - 4:
            return complete(request, ERROR)
        reply = exchange(data[4:])
        return complete(request, SUCCESS, len(reply).to_bytes(4, "big") + reply)
    except QgsError as error:
        # A refusal by the service is an error; a service that is not there is unavailable.
        return complete(request, ERROR if error.code else SERVICE_UNAVAILABLE)


def serve(buffer: bytes, exchange: Callable[[bytes], bytes]) -> bytes:
    """The whole buffer after a request was served to its end: all three steps in one, for tests.

    Raises:
        AttestationError: the request would have been refused in R10.
    """
    admission = admit(0, len(buffer), lambda offset, length: buffer[offset : offset + length])
    if admission.request is None:
        raise AttestationError(f"the request is refused: R10 = {admission.r10:#x}")
    out = bytearray(buffer)
    for write in (*admission.writes, *answer(admission.request, exchange)):
        out[write.offset : write.offset + len(write.data)] = write.data
    return bytes(out)

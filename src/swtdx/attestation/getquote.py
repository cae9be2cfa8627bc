"""What is in a GetQuote request, and what goes back: the data part of the buffer a TD shares.

The buffer itself (version, status, lengths) is the hypervisor's business; it hands the data to a quote
service, Intel's or ours.  Forms of the data: attestation.md section 8, from
Linux's ``tdx-guest.c``, Intel's ``libtdx_attest`` and QEMU's ``quote-generator.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .errors import QgsError
from .qgs import messages
from .tdreport import TDREPORT_SIZE

#: Bytes of the big-endian length in front of a QGS message.
_PREFIX: Final = 4


def answer(data: bytes, exchange: Callable[[bytes], bytes]) -> bytes:
    """What a TD gets for ``data``.

    A bare TDREPORT (1024 bytes; Linux) gets a bare quote.  A QGS message behind its length (4 bytes,
    big-endian; Intel's library) gets a QGS message behind its length, whatever it says.

    Args:
        data: what the TD sent, without filler.
        exchange: sends a QGS message and returns the answer, both without length, as
            ``qgs.client.QgsClient.exchange`` does.

    Raises:
        QgsError: ``data`` is neither, or the service refuses (both with a code), or it cannot be
            reached (with code 0).
    """
    if len(data) == TDREPORT_SIZE:
        return messages.parse_quote_response(exchange(messages.quote_request(data)))
    if len(data) < _PREFIX or int.from_bytes(data[:_PREFIX], "big") != len(data) - _PREFIX:
        raise QgsError(
            f"{len(data)} bytes are neither a TDREPORT ({TDREPORT_SIZE} bytes) nor a QGS message behind "
            "its length",
            messages.QgsStatus.INVALID_PARAMETER,
        )
    reply = exchange(data[_PREFIX:])
    return len(reply).to_bytes(_PREFIX, "big") + reply

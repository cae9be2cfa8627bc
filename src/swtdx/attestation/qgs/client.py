"""A client of any quote generation service: swtdx's, or Intel's on real hardware."""

from __future__ import annotations

import contextlib

from ..errors import QgsError
from ..oserrors import words
from . import messages
from .connection import Connection, Service
from .messages import PlatformInfo


class QgsClient:
    """Asks the service at ``address``; ``timeout`` in seconds for each wait (QEMU's is 30)."""

    def __init__(self, address: Service, timeout: float = 30.0) -> None:
        self.address = address
        self.timeout = timeout

    def exchange(self, request: bytes) -> bytes:
        """Send one message and return the answer, both without length prefix.

        Raises:
            QgsError: the service does not answer, or the answer ends early or is too long.
        """
        try:
            with contextlib.closing(self.address.connect(self.timeout)) as connection:
                connection.sendall(len(request).to_bytes(4, "big") + request)
                length = int.from_bytes(self._read(connection, 4), "big")
                if not messages.HEADER.size <= length <= messages.MAX_MESSAGE:
                    raise QgsError(f"the service at {self.address} announces an answer of {length} bytes")
                return self._read(connection, length)
        except TimeoutError:
            raise QgsError(
                f"the quote generation service at {self.address} did not answer in {self.timeout:g} s"
            ) from None
        except OSError as error:
            raise QgsError(
                f"cannot reach a quote generation service at {self.address}: {words(error)}"
            ) from None

    def _read(self, connection: Connection, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = connection.recv(size - len(data))
            if not chunk:
                raise QgsError(
                    f"the service at {self.address} closed the connection after {len(data)} of {size} bytes"
                )
            data += chunk
        return bytes(data)

    def quote(self, report: bytes) -> bytes:
        """The quote for a TDREPORT (1024 bytes).

        Raises:
            QgsError: the service cannot be reached, or refuses.
        """
        return messages.parse_quote_response(self.exchange(messages.quote_request(report)))

    def collateral(self, fmspc: bytes, ca: str) -> dict[str, bytes]:
        """The parts of collateral by name, for an FMSPC (6 bytes) and a PCK CA.

        Raises:
            QgsError: the service cannot be reached, or refuses.
        """
        return messages.parse_collateral_response(self.exchange(messages.collateral_request(fmspc, ca)))

    def platform_info(self) -> PlatformInfo:
        """Ids and SVNs of the service's platform.

        Raises:
            QgsError: the service cannot be reached, or refuses.
        """
        return messages.parse_platform_info_response(self.exchange(messages.platform_info_request()))

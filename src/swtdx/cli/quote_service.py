"""A TD's quote service that tells the user, once, when it fails: the guest sees an empty blob at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from swtdx.cli.failures import complain


class ToldQuotes:
    """``service`` (:data:`swtdx.vmm.quote.QuoteService`) with an eye on how it does.

    Args:
        service: makes the quotes.
        address: of a service elsewhere; None for the platform's own enclave.
        tell: takes the message of the first failure.
    """

    def __init__(
        self,
        service: Callable[[bytes], bytes],
        address: str | None,
        tell: Callable[[str], None] = complain,
    ) -> None:
        self._service = service
        self._where = "the platform's quoting enclave" if address is None else address
        self._tell = tell
        self._lock = threading.Lock()
        self._asked = 0
        self._failed = 0
        #: Why the first request that failed did; None as long as none has.
        self.reason: str | None = None

    def __call__(self, data: bytes) -> bytes:
        """See :data:`swtdx.vmm.quote.QuoteService`.  On any thread."""
        with self._lock:
            self._asked += 1
        try:
            return self._service(data)
        except Exception as error:
            missing = isinstance(error, ConnectionError)
            with self._lock:
                self._failed += 1
                first = self.reason is None
                if first:
                    # A connection's error names the address itself.
                    whose = "" if missing else f"{self._where} refused: "
                    self.reason = f"{whose}{error}"
            if first and self.reason is not None:
                self._tell(f"the guest got no quote: {self.reason}")
            raise

    def document(self) -> dict[str, Any]:
        """For programs: who was asked, how often, and what went wrong."""
        return {
            "service": self._where,
            "requests": self._asked,
            "failed": self._failed,
            "reason": self.reason,
        }

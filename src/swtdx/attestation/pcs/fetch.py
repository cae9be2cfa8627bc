"""Fetching collateral for a quote from a PCS or PCCS, by dcap-qvl's own client."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any, Final

from ..errors import AttestationError, MissingDependency

#: Seconds to wait for dcap-qvl's thread to let go.
_PATIENCE: Final = 5
_TRUST: Final = "if its certificate is not one that this system trusts: --pcs-ca FILE or --insecure"


def fetch_collateral(url: str, quote: bytes) -> Any:
    """dcap-qvl's collateral object for ``quote``, from the service at the base URL ``url``.

    Raises:
        AttestationError: the service cannot be reached, or has no collateral for the quote.
        MissingDependency: dcap-qvl is not installed.
    """
    try:
        import dcap_qvl
    except ImportError as error:
        raise MissingDependency(
            "fetching collateral needs dcap-qvl (extra 'attestation'): pip install dcap-qvl"
        ) from error
    shared: list[weakref.ref[Any]] = []

    async def get() -> Any:
        future = dcap_qvl.get_collateral(url, quote)
        shared.extend((weakref.ref(future), weakref.ref(asyncio.get_running_loop())))
        return await future

    collateral, failure = None, None
    try:
        collateral = asyncio.run(get())
    except (ValueError, RuntimeError) as error:
        failure = str(error)
    # Not before the exception is gone: its traceback refers to the future as well.
    _wait_until_gone(shared)
    if failure is not None:
        # dcap-qvl does not say what failed; a service of one's own mostly has a certificate of its own.
        hint = f" ({_TRUST})" if url.startswith("https:") and "sending request" in failure else ""
        raise AttestationError(f"no collateral from {url}: {failure}{hint}")
    return collateral


def _wait_until_gone(shared: list[weakref.ref[Any]]) -> None:
    """Wait until the thread of dcap-qvl's runtime has dropped what it shared with us.

    It delivers the result first and drops its references to future and event loop afterwards.  A Python
    that comes to its end in between dies of a segmentation fault (dcap-qvl 0.7).
    """
    end = time.monotonic() + _PATIENCE
    while any(each() is not None for each in shared) and time.monotonic() < end:
        # Lets the other thread run; the collector, because the two refer to each other.
        time.sleep(0.001)
        gc.collect()

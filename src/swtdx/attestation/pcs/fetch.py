"""Fetching collateral for a quote from a PCS or PCCS, by dcap-qvl's own client."""

from __future__ import annotations

import asyncio
from typing import Any

from ..errors import AttestationError, MissingDependency


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
            "fetching collateral needs the dcap-qvl package: pip install 'swtdx[attestation]'"
        ) from error

    async def get() -> Any:
        return await dcap_qvl.get_collateral(url, quote)

    try:
        return asyncio.run(get())
    except (ValueError, RuntimeError) as error:
        raise AttestationError(f"no collateral from {url}: {error}") from None

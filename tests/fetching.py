"""What a test does that fetches something and cannot: it is skipped, or fails where that must not happen."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

#: Set (to anything) in CI: a test that needs the network fails instead of being skipped.
REQUIRED = "SWTDX_REQUIRE_NETWORK"


def cannot_fetch(reason: str) -> NoReturn:
    """End the test: what it needs cannot be had."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason} ({REQUIRED} is set)")
    pytest.skip(reason)

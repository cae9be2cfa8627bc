"""Guests for boot tests: fetched once, found in the cache afterwards."""

from __future__ import annotations

import pytest

from swtdx.guests.errors import CacheError, FetchError
from swtdx.guests.fetch import available_kernels, fetch_guest
from swtdx.guests.guest import Guest, cached_guests, default_guest
from tests.fetching import cannot_fetch


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The kernel that runs where none is named."""
    try:
        return default_guest() or fetch_guest()
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))


@pytest.fixture(scope="session")
def other_guest(guest: Guest) -> Guest:
    """A kernel of another version, as far from that as the system's package sources reach."""
    try:
        cached = [other for other in cached_guests() if other.version != guest.version]
        if cached:
            return cached[-1]
        others = [version for version in available_kernels() if version != guest.version]
        if not others:
            cannot_fetch(f"the package sources have no kernel for a TD beside {guest.version}")
        return fetch_guest(others[-1])
    except (FetchError, CacheError) as error:
        cannot_fetch(str(error))

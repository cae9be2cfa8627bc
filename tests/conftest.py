"""What holds for all tests, wherever and however they are started."""

from __future__ import annotations

import signal
from collections import Counter

import pytest
from hypothesis import settings

from tests.cache import use_own_cache

# How long an example takes says how busy the computer is; how fast things are is for benchmarks to say.
settings.register_profile("swtdx", deadline=None)
settings.load_profile("swtdx")


def pytest_configure(config: pytest.Config) -> None:
    """The tests' own cache, and signals as a terminal's programs have them."""
    if not hasattr(config, "workerinput"):  # pytest-xdist's processes have it from the one that starts them
        use_own_cache()
    # A shell's background job ignores SIGINT, and so would all that tests start: they are about it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no process is left alone with one at the end; and every id only once.

    Of tests that share an id ``--dist loadfile`` runs only one.
    """
    shared = [nodeid for nodeid, count in Counter(item.nodeid for item in items).items() if count > 1]
    if shared:
        raise pytest.UsageError(f"several tests have the id {shared[0]}")
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("boot")}
    # Guests and QEMU take their time already, and most of what they do the other tests do too.
    for item in items:
        if any(item.get_closest_marker(name) for name in ("boot", "slow", "qemu")):
            item.add_marker("no_cover")
    items.sort(key=lambda item: item.path not in long)

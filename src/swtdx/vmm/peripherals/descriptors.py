"""How many descriptors this process may have."""

from __future__ import annotations

import resource
from typing import Final

#: What a client of a shared folder may need, where the system lets us.
_WANTED: Final = 16384


def descriptors() -> int:
    """The limit, raised as far as it goes and is of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(hard, _WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return wanted if soft == resource.RLIM_INFINITY else soft

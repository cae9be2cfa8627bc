"""The tests' own cache of what they fetch, in the checkout: nothing is put into the user's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from swtdx.guests.cache import Cache

#: In the checkout; `make clean` removes it.
FOLDER = Path(__file__).parent.parent / ".test-cache"
#: What is taken over: entries are replaced whole, never changed, so that links to their files are safe.
KINDS = ("guests", "firmware")


def use_own_cache(folder: Path = FOLDER) -> None:
    """From now on, also in programs that are started, the cache is in ``folder``.

    What the user has fetched is there at once, as hard links, or as copies on another file system.
    """
    users = Cache()
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ["NPM_CONFIG_CACHE"] = str(folder / "npm")
    ours = Cache()
    if users.root == ours.root:
        return
    for kind in KINDS:
        for name in set(users.names(kind)) - set(ours.names(kind)):
            _take_over(users.root / kind / name, ours.root / kind / name)


def _take_over(source: Path, target: Path) -> None:
    new = target.with_name(f".new-{os.getpid()}-{target.name}")
    try:
        shutil.copytree(source, new, copy_function=_link)
        new.rename(target)
    except OSError:
        # Somebody else did it meanwhile, or it cannot be read: it will be fetched.
        shutil.rmtree(new, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

"""What scripts and tests of users import, by the names in :mod:`swtdx`: a small face on the rooms below.

Nothing of a machine is imported for the names that need none (:func:`explain`, :func:`verify`), so that they
work where there is no Linux.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any


def find(name: str) -> Any:
    """The public object ``name`` of :mod:`swtdx`, imported now.

    Raises:
        AttributeError: there is no such name.
    """
    home: ModuleType
    if name == "script":
        import swtdx.script as script

        return script
    if name == "Platform":
        from swtdx.api import platform

        home = platform
    elif name == "Hypervisor":
        from swtdx.api import hypervisor

        home = hypervisor
    elif name in ("Td", "TdEnded", "Exit"):
        from swtdx.api import td

        home = td
    elif name == "ScriptedTd":
        from swtdx.api import scripted

        home = scripted
    elif name == "restore":
        from swtdx.api import restoring

        home = restoring
    elif name == "run":
        from swtdx.api import running

        home = running
    elif name in ("LinuxTd", "Completed"):
        from swtdx.api import linux

        home = linux
    elif name == "Tracer":
        from swtdx.api import tracer

        home = tracer
    elif name in ("Explanation", "explain"):
        from swtdx.api import explaining

        home = explaining
    elif name in ("Quote", "make_quote", "verify", "CollateralService"):
        from swtdx.api import attesting

        home = attesting
    else:
        raise AttributeError(f"swtdx has no public name {name!r}")
    return getattr(home, name)

"""swtdx: Intel TDX in software.

What a script imports is here, and nowhere else: the names in ``__all__``, which ``docs/api.md`` describes.
They are stable as semantic versioning says; every other module of the package may change in any release.
Each name is imported when it is first used, so that ``import swtdx`` costs nothing.

The rooms of the house are described in ``docs/architecture.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swtdx.__about__ import __version__

if TYPE_CHECKING:
    from swtdx import script as script
    from swtdx.api.attesting import CollateralService as CollateralService
    from swtdx.api.attesting import Quote as Quote
    from swtdx.api.attesting import make_quote as make_quote
    from swtdx.api.attesting import verify as verify
    from swtdx.api.explaining import Explanation as Explanation
    from swtdx.api.explaining import explain as explain
    from swtdx.api.hypervisor import Hypervisor as Hypervisor
    from swtdx.api.linux import Completed as Completed
    from swtdx.api.linux import LinuxTd as LinuxTd
    from swtdx.api.platform import Platform as Platform
    from swtdx.api.restoring import restore as restore
    from swtdx.api.running import run as run
    from swtdx.api.scripted import ScriptedTd as ScriptedTd
    from swtdx.api.td import Exit as Exit
    from swtdx.api.td import Td as Td
    from swtdx.api.td import TdEnded as TdEnded
    from swtdx.api.tracer import Tracer as Tracer

__all__ = [
    "CollateralService",
    "Completed",
    "Exit",
    "Explanation",
    "Hypervisor",
    "LinuxTd",
    "Platform",
    "Quote",
    "ScriptedTd",
    "Td",
    "TdEnded",
    "Tracer",
    "__version__",
    "explain",
    "make_quote",
    "restore",
    "run",
    "script",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from swtdx import api

    found = api.find(name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)

"""All scenes."""

from __future__ import annotations

from typing import Final

from swtdx.scenes.attack import attack
from swtdx.scenes.interrupt import interrupt
from swtdx.scenes.life import life
from swtdx.scenes.mmio import mmio
from swtdx.scenes.model import Scene

SCENES: Final = {
    scene.name: scene
    for scene in (
        Scene(
            "mmio", "A guest reads a device: #VE, TDVMCALL, emulation, and what the host cannot see.", mmio
        ),
        Scene("interrupt", "An interrupt throws the guest out; another goes in without an exit.", interrupt),
        Scene("life", "A TD from TDH.MNG.CREATE to its last page, with all states.", life),
        Scene("attack", "A hypervisor that tries everything, and is refused by name.", attack),
    )
}

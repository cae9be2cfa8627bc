"""Every SEAMCALL leaf of the TDX Module, by number and by name."""

from __future__ import annotations

from typing import Final

from swtdx.arch.leaf import Leaf
from swtdx.arch.leaves_mem import MEM_LEAVES
from swtdx.arch.leaves_migration import MIGRATION_LEAVES, SERVICE_TD_LEAVES
from swtdx.arch.leaves_sys import PHYMEM_LEAVES, SYS_LEAVES
from swtdx.arch.leaves_td import MNG_LEAVES, VP_LEAVES

#: Leaf by number (RAX[15:0]), ascending.
HOST_LEAVES: Final[dict[int, Leaf]] = {
    leaf.number: leaf
    for leaf in sorted(
        (
            *SYS_LEAVES, *PHYMEM_LEAVES, *MNG_LEAVES, *VP_LEAVES, *MEM_LEAVES,
            *MIGRATION_LEAVES, *SERVICE_TD_LEAVES,
        ),
        key=lambda leaf: leaf.number,
    )
}  # fmt: skip

#: Leaf by its full name, such as ``"TDH.MNG.CREATE"``.
HOST_BY_NAME: Final[dict[str, Leaf]] = {leaf.name: leaf for leaf in HOST_LEAVES.values()}

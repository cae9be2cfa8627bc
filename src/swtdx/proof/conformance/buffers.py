"""Cases of operands that point to the hypervisor's own memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from swtdx.arch import status as s
from swtdx.proof.conformance.common import Good
from swtdx.proof.conformance.world import World

_WRONG: Final[tuple[tuple[str, Callable[[World, int], int]], ...]] = (
    ("with a private HKID", lambda w, pa: pa | w.first_hkid << w.module.hpa_bits),
    ("beyond MAXPA", lambda w, pa: pa | 1 << 52),
    ("in the SEAM range", lambda w, pa: w.seam_range),
)


def shared(good: Good, register: str, alignment: int, *, reusable: bool = True) -> None:
    """A buffer by its PA, with a shared HKID or none, aligned, outside the SEAM range."""
    name = register.upper()

    def operand(world: World) -> int:
        return good.operands(world)[register]

    wrong = (*_WRONG, (f"not aligned to {alignment}", lambda w, pa: pa + alignment // 2))
    for what, change in wrong:
        good.refused(
            s.TDX_OPERAND_INVALID, f"{name} is {what}", name, reusable=reusable,
            at={register: lambda w, change=change: change(w, operand(w))},  # type: ignore[misc]
        )  # fmt: skip

"""What a number or a name of the TDX ABI means."""

from __future__ import annotations

from swtdx.explaining.find import find
from swtdx.explaining.model import Explanation

__all__ = ["Explanation", "explain"]


def explain(what: str | int, kind: str | None = None) -> list[Explanation]:
    """Everything that ``what`` can mean, the likeliest first: as ``swtdx explain``.

    Args:
        what: a name, a number, or a line of a log.
        kind: look only among these: leaf, status, field, tdvmcall, exit, operand, msr, cpuid, half, dcap,
            mrseam.

    Raises:
        LookupError: it means nothing in the ABI.
        ValueError: there is no such kind.
    """
    from swtdx.explaining.find import KINDS

    if kind is not None and kind not in KINDS:
        raise ValueError(f"{kind!r}: a kind is one of {', '.join(KINDS)}")
    return find(hex(what) if isinstance(what, int) else what, kind)

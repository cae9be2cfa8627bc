"""Explaining an MRSEAM: which published TDX Module it is of."""

from __future__ import annotations

from typing import Final

from swtdx.arch.published_modules import MODULES, by_mrseam
from swtdx.explaining.model import Explanation, table

_DIGITS: Final = 96


def explain_mrseam(text: str) -> list[Explanation]:
    """What module a 48-byte hash is; nothing for other texts."""
    digits = "".join(text.split()).lower().removeprefix("0x").replace(":", "").replace("_", "")
    if len(digits) != _DIGITS or not set(digits) <= set("0123456789abcdef"):
        return []
    module = by_mrseam(digits)
    if module is None:
        summary = "48 bytes: no published TDX Module known here has this MRSEAM"
        if not int(digits, 16):
            summary = "48 zero bytes: MRSIGNERSEAM of a module of Intel's, or a register never extended"
        rows = [(each.version, each.mrseam, each.source) for each in MODULES]
        tables = table("Known MRSEAM values", ("Version", "MRSEAM", "Source"), rows)
        return [Explanation("mrseam", digits, f"{digits[:16]}...", summary, (), tables)]
    facts = (("MRSEAM", module.mrseam), ("Version", module.version), ("Source", module.source))
    return [
        Explanation(
            "mrseam",
            digits,
            f"MRSEAM of the TDX Module {module.version}",
            "the hash of a published module of Intel's",
            facts,
        )
    ]

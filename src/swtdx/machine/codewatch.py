"""Which frames a guest may have executed code from, and for whom.

An engine translates guest code and does not see what Python writes to memory.  Content that a guest
writes itself it sees; content that arrives otherwise arrives while the frame belongs to nobody, or
to somebody else.  So a frame must be cleaned of translated code exactly when it is mapped for
another owner, or at another GPA, than the last time.
"""

from __future__ import annotations

from swtdx.arch.units import LARGE_PAGE, PAGE

#: (owner, GPA - HPA): the same for every page of an unchanged large mapping.
Tag = tuple[int, int]


class CodeWatch:
    """Remembers the last executable mapping of every frame."""

    def __init__(self) -> None:
        self._large: dict[int, Tag] = {}
        self._small: dict[int, dict[int, Tag]] = {}

    def mapped(self, owner: int, gpa: int, hpa: int, size: int) -> bool:
        """Note a mapping; True when the frames may hold code translated for another one."""
        tag = (owner, gpa - hpa)
        region = hpa // LARGE_PAGE
        before = self._large.get(region)
        if size >= LARGE_PAGE:
            parts = self._small.pop(region, {})
            self._large[region] = tag
            return before not in (None, tag) or any(part != tag for part in parts.values())
        parts = self._small.setdefault(region, {})
        last = parts.get(hpa // PAGE, before)
        parts[hpa // PAGE] = tag
        return last not in (None, tag)

    def ever_mapped(self, hpa: int, size: int) -> bool:
        """Whether a frame of the ``size`` bytes at ``hpa``, within one 2 MiB region, was ever mapped."""
        region = hpa // LARGE_PAGE
        if region in self._large:
            return True
        parts = self._small.get(region)
        return parts is not None and any(
            page in parts for page in range(hpa // PAGE, (hpa + size - 1) // PAGE + 1)
        )

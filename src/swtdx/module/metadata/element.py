"""What reading and writing an element have in common, whatever it belongs to."""

from __future__ import annotations

import struct
from typing import Final

from swtdx.arch import status as st
from swtdx.module.errors import LeafFailed

#: Codecs by element size in bytes.
SIZES: Final = {size: struct.Struct(code) for size, code in ((1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q"))}
#: A page of a control structure, and a byte offset in it.
Place = tuple[memoryview, int]


def merged(old: int, value: int, wanted: int, allowed: int) -> int:
    """``old`` with the ``wanted`` bits of ``value`` that may be written.

    Raises:
        LeafFailed: METADATA_FIELD_NOT_WRITABLE if none of them may, METADATA_FIELD_VALUE_NOT_VALID if the
            caller tries to change one that it may not.
    """
    mask = wanted & allowed
    if not mask:
        raise LeafFailed(st.TDX_METADATA_FIELD_NOT_WRITABLE)
    forbidden = wanted & ~allowed
    if (old ^ value) & forbidden:
        raise LeafFailed(st.TDX_METADATA_FIELD_VALUE_NOT_VALID)
    return old & ~mask | value & mask

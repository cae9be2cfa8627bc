"""Which module this is.

The numbers are those of Intel's TDX Module 1.5.01, whose interface it has (structures.md §13.3); the build
date is the one that 1.5.01's SIGSTRUCT carries.
"""

from __future__ import annotations

from typing import Final

#: The decimal number yyyymmdd.
BUILD_DATE: Final = 20240101
BUILD_NUM: Final = 0
MAJOR_VERSION: Final = 1
MINOR_VERSION: Final = 5
UPDATE_VERSION: Final = 1
INTERNAL_VERSION: Final = 0
#: Handoff versions: there is one, and TD preserving is not offered (TDX_FEATURES0).
MODULE_HV: Final = 0
MIN_UPDATE_HV: Final = 0
NO_DOWNGRADE: Final = 0

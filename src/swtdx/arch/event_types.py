"""Types of events in a measured boot's log that swtdx writes or reads by number.

Source: TCG PC Client Platform Firmware Profile 1.06, table 27 ("Events").
"""

from __future__ import annotations

from typing import Final

EV_NO_ACTION: Final = 0x3
EV_EVENT_TAG: Final = 0x6
EV_EFI_PLATFORM_FIRMWARE_BLOB2: Final = 0x8000000A

"""What runs inside the TD for ``swtdx quote``: a shell script on configfs, and how to read its output.

The interface is Linux's own (``Documentation/ABI/testing/configfs-tsm``): make a directory, write 64 bytes
to ``inblob``, read ``outblob``; ``generation`` tells whether somebody else wrote in between.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

#: Bytes of REPORTDATA.
REPORTDATA: Final = 64

_QUOTE: Final = "quote:"
_LOG: Final = "event log:"

_SCRIPT: Final = r"""
report=/sys/kernel/config/tsm/report
[ -d $report ] || { echo "this kernel has no $report (CONFIG_TSM_REPORTS, Linux 6.7 and later)"; exit 1; }
mkdir $report/swtdx && cd $report/swtdx || exit 1
printf '@REPORTDATA@' >inblob || exit 1
before=$(cat generation)
cat outblob >/tmp/quote || exit 1
# Linux shows an empty blob when GetQuote ends with an error (tdx-guest.c, tdx_report_new).
[ -s /tmp/quote ] || { echo "the quote service refused, or there is none"; exit 1; }
[ "$(cat generation)" = "$before" ] || { echo "somebody else used $report/swtdx"; exit 1; }
echo @QUOTE@
base64 /tmp/quote
echo @LOG@
log=/sys/firmware/acpi/tables/data/CCEL
[ ! -r $log ] || base64 $log
"""


@dataclass(frozen=True)
class Answer:
    """The quote, and the event log's whole area (empty if the kernel shows none)."""

    quote: bytes
    eventlog: bytes


def command(reportdata: bytes) -> str:
    """The script that asks for a quote over ``reportdata`` (64 bytes)."""
    octal = "".join(f"\\{byte:03o}" for byte in reportdata)
    script = _SCRIPT.replace("@REPORTDATA@", octal)
    return script.replace("@QUOTE@", f"'{_QUOTE}'").replace("@LOG@", f"'{_LOG}'").strip()


def parse_output(output: bytes) -> Answer | str:
    """The answer in the script's output, or, when there is no quote in it, what it says instead."""
    text = output.decode("utf-8", "replace").replace("\r", "")
    before, found, rest = text.partition(f"{_QUOTE}\n")
    quote, complete, log = rest.partition(f"{_LOG}\n")
    if not found:
        return before.strip() or "it printed nothing"
    if not complete:
        return "its output was cut"
    try:
        return Answer(base64.b64decode(quote, validate=False), base64.b64decode(log, validate=False))
    except binascii.Error as error:
        return f"its output was cut: {error}"

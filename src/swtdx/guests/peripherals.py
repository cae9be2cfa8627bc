"""What an initramfs of ours does about peripherals: mounts folders, and asks the network for an address.

==================  ===============================================================================
/swtdx/shares       tags of shared folders, one a line; each is mounted at /mnt/TAG
/swtdx/net          there is a network: ``udhcpc`` is asked for an address
==================  ===============================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

from swtdx.guests import cpio


def peripheral_files(kinds: Iterable[str], shares: Iterable[str]) -> list[cpio.Entry]:
    """Files for the job's archive.

    Args:
        kinds: names of :data:`swtdx.guests.modules.PERIPHERALS`.
        shares: tags of shared folders.
    """
    entries = []
    tags = list(shares)
    if tags:
        entries.append(cpio.directory("mnt"))
        entries.append(cpio.regular("swtdx/shares", "".join(f"{tag}\n" for tag in tags).encode(), 0o600))
    if "net" in kinds:
        script = resources.files("swtdx.guests").joinpath("udhcpc.sh").read_bytes()
        entries.append(cpio.regular("swtdx/net", script, 0o700))
    return entries

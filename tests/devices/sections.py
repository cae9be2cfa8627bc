"""State written down and read back, by way of the sections of real snapshot files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from swtdx.devices.saved import Saved
from swtdx.machine.snapshot import Snapshot, SnapshotWriter


def carry(old: Saved, new: Saved) -> None:
    """Save ``old`` and load ``new`` from that: all of it, and no more."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with SnapshotWriter(path) as snapshot, snapshot.section("state", 1) as out:
            old.save_state(out)
        with Snapshot(path) as saved:
            section = saved.section("state", 1)
            new.load_state(section)
            section.end()

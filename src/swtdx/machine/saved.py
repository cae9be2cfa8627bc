"""What a snapshot asks of an object with state: to write it down and to take it back, by itself.

Which fields that is, and in which order, only their owner knows; :mod:`swtdx.machine.save` says in which
section of the file each owner comes.  A field that is added to an owner is added to these two methods, and
the section's version goes up.
"""

from __future__ import annotations

from typing import Protocol

from swtdx.machine.snapshot import SectionReader, SectionWriter


class Saved(Protocol):
    """An owner of state that a snapshot holds."""

    def save_state(self, out: SectionWriter) -> None:
        """Write the state down.

        Raises:
            SnapshotError: it cannot be saved now.
        """

    def load_state(self, section: SectionReader) -> None:
        """Take over the state that :meth:`save_state` wrote, from where ``section`` is.

        Raises:
            SnapshotError: it makes no sense.
        """

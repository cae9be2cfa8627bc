"""The attestation commands together, for programs with a command line of their own.

Everything here works with no machine.
"""

from __future__ import annotations

import click

from swtdx.cli.attesting import parse_moment as parse_moment
from swtdx.cli.eventlog import eventlog
from swtdx.cli.pcs import pcs
from swtdx.cli.show import show
from swtdx.cli.vectors import vectors
from swtdx.cli.verify import verify


def register(group: click.Group) -> None:
    """Add the attestation commands to ``group``."""
    for command in (verify, show, pcs, eventlog, vectors):
        group.add_command(command)

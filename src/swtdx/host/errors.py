"""What can be wrong with a host."""

from __future__ import annotations


class HostError(Exception):
    """The host cannot be prepared or started; the message says why, and the way out."""

"""What the system says about a file or socket that cannot be used, in words alone."""

from __future__ import annotations


def words(error: BaseException) -> str:
    """The system's sentence without its number and without the path, which the message around it has."""
    return getattr(error, "strerror", None) or str(error)

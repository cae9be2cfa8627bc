"""What can be wrong with something to be measured."""

from __future__ import annotations


class MeasureError(Exception):
    """The image, or the list of pages, cannot be measured; the message names the thing and the way out."""

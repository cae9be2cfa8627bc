"""What this package says of itself: imported from everywhere, and importing nothing."""

from __future__ import annotations

__version__ = "0.1.0"

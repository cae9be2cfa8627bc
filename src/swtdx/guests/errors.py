"""What can go wrong with a guest, each with a message that names the thing and the way out."""

from __future__ import annotations


class GuestError(Exception):
    """A guest could not be found, read, built or started."""


class NotAKernel(GuestError):
    """The file is not a bzImage that the 64-bit boot protocol can start."""


class NoTdxSupport(GuestError):
    """The kernel was built without ``CONFIG_INTEL_TDX_GUEST``, or it cannot be told."""


class NotFirmware(GuestError):
    """The file is not a TDVF image: firmware that a VMM can build a TD of."""


class PackageError(GuestError):
    """A Debian package could not be read."""


class FetchError(GuestError):
    """The system's package tool could not deliver what was asked for."""


class CacheError(GuestError):
    """The cache directory holds something else than what was put there."""


class DoesNotFit(GuestError):
    """The guest's memory is too small, or badly shaped, for what has to go into it."""

"""What can go wrong with what stands behind a device."""

from __future__ import annotations

from swtdx.vmm.errors import VmmError


class PeripheralError(VmmError):
    """A disk, network, folder or socket of the host cannot be used as it was asked for."""

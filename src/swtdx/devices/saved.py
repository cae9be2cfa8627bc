"""How a device is saved with its board, and put back: each knows its own state, and nothing else does.

Devices never see the machine, nor its snapshot files; what they write to and read from are the two protocols
here, which the sections of :mod:`swtdx.machine.snapshot` fulfil.  A device's methods fit
:class:`swtdx.machine.saved.Saved`, too.

Saved is what the guest has made of a device, and what waits for the guest; not what the device was built of,
which the one that state is put back into must have been built of as well.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


class Out(Protocol):
    """Takes state.  Integers are unsigned and little-endian."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes, whose number the reader knows."""

    def u8(self, value: int) -> None:
        """One byte."""

    def u16(self, value: int) -> None:
        """A 16-bit integer."""

    def u32(self, value: int) -> None:
        """A 32-bit integer."""

    def u64(self, value: int) -> None:
        """A 64-bit integer."""

    def blob(self, data: bytes | bytearray | memoryview) -> None:
        """Bytes with their number."""

    def text(self, value: str) -> None:
        """A string."""


class In(Protocol):
    """Gives state back in the order in which it was written.

    Every method raises an error, the one that :meth:`fail` makes, where there is no more.
    """

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes."""

    def u8(self) -> int:
        """The next byte."""

    def u16(self) -> int:
        """The next 16-bit integer."""

    def u32(self) -> int:
        """The next 32-bit integer."""

    def u64(self) -> int:
        """The next 64-bit integer."""

    def blob(self) -> bytes:
        """The next bytes that were written with their number."""

    def text(self) -> str:
        """The next string."""

    def fail(self, why: str) -> Exception:
        """An error for contents that make no sense, to be raised."""


@runtime_checkable
class Saved(Protocol):
    """An owner of state."""

    def save_state(self, out: Out) -> None:
        """Write the state down.  No vCPU runs meanwhile."""

    def load_state(self, section: In) -> None:
        """Take over what :meth:`save_state` wrote, into an object as it was made.

        Raises:
            Exception: it makes no sense (:meth:`In.fail`).
        """


class Stateless:
    """A device without state of its own."""

    def save_state(self, out: Out) -> None:
        """There is nothing to write."""

    def load_state(self, section: In) -> None:
        """There is nothing to read."""

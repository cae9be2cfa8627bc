"""A running TD in a file, and going on from there: with its machine, its hypervisor and its devices.

:func:`save` writes a TD that stands still between two runs; :class:`SavedTd` is such a file, and its
:meth:`~SavedTd.platform` and :meth:`~SavedTd.launch` make a machine that goes on from it, as often as wanted,
many at once: the frames of its memory stay in the file, and what a TD writes is its own
(:mod:`swtdx.machine.memory.image`).

The file holds everything in plain: the TD's memory, its keys, the platform's identity.  It is readable by its
owner alone.  What is refused, by name: a file of another version of swtdx, of another version of QEMU (its
processor is another model), and one that was cut short.

**Time.**  The time-stamp counter goes on where it was, as if nothing had happened: the guest's monotonic
clock and its timers do not notice.  Its wall clock is as wrong as the snapshot is old, until the guest sets
it (:func:`swtdx.guests.agent.renew_request`, which our own guests serve) or reads the clock chip, which has
the host's time.

**Entropy.**  The processor's random source goes a way of its own in each machine that goes on.  What the
guest's kernel has gathered is the same in all of them until it gathers more: the same request gives it
something that no sibling has.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from swtdx.__about__ import __version__
from swtdx.machine.snapshot import SectionReader, Snapshot, SnapshotError, SnapshotWriter

if TYPE_CHECKING:
    from swtdx.platform import Platform
    from swtdx.vmm.console import Console
    from swtdx.vmm.launch import Launch, LaunchConfig

_ABOUT: Final = "td"
#: Of how a hypervisor and its TD are written down.
_HYPERVISOR: Final = "hypervisor"
VERSION: Final = 1
#: The host's counter may differ from the one that the TD was made for by so much.
_CLOCK_TOLERANCE: Final = 0.02
#: What Python raises on values that no TD has saved.
_NONSENSE: Final = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True)
class About:
    """What a file says of its TD.

    Args:
        label: what it has booted, in words.
        cmdline: the kernel's command line.
        memory: bytes of its RAM.
        waits: it serves requests (:mod:`swtdx.guests.agent`), and waits for one.
        token: of the command that it is running by itself; empty if it runs none.
        vcpus, debug, model: of the TD and its machine.
        saved_at: seconds since 1970 in UTC.
    """

    label: str
    cmdline: str
    memory: int
    waits: bool
    token: str = ""
    vcpus: int = 1
    debug: bool = False
    model: str = ""
    saved_at: float = 0.0


def save(
    path: str | os.PathLike[str],
    platform: Platform,
    launch: Launch,
    *,
    label: str,
    cmdline: str,
    memory: int,
    waits: bool,
    token: str = "",
) -> None:
    """Write the TD of ``launch``, which stands still, with its ``platform``; the other arguments are those
    of :class:`About`.  The TD can go on afterwards.

    Raises:
        SnapshotError: a processor is running, or the file cannot be written.
        VmmError: something is under way that cannot be saved.
        BoardError: a device does not say how it is saved.
    """
    machine = platform.machine
    about = About(
        label=label,
        cmdline=cmdline,
        memory=memory,
        waits=waits,
        token=token,
        vcpus=launch.td.config.vcpus,
        debug=launch.td.config.debug,
        model=machine.processors[0].model.name,
        saved_at=time.time(),
    )
    with SnapshotWriter(path) as snapshot:
        with snapshot.section(_ABOUT, VERSION) as out:
            out.text(
                json.dumps(
                    {
                        "version": __version__,
                        "engine": machine.engine.version,
                        "tsc": machine.tsc(),
                        "tsc_hz": machine.tsc_hz,
                        "about": {name: getattr(about, name) for name in About.__slots__},
                    }
                )
            )
        with snapshot.section(_HYPERVISOR, VERSION) as out:
            launch.save_state(out)
        platform.write(snapshot, as_image=True)


class SavedTd:
    """A file that :func:`save` wrote; a context manager.

    Raises:
        SnapshotError: it cannot be read, is no such file, of another version, or cut short.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._snapshot = Snapshot(path)
        self.path = self._snapshot.path
        try:
            if _ABOUT not in self._snapshot.sections:
                raise SnapshotError(f"{self.path}: a snapshot of a machine, and not of a running TD")
            section = self._snapshot.section(_ABOUT, VERSION)
            known = _described(section)
            section.end()
            if known["version"] != __version__:
                raise SnapshotError(
                    f"{self.path}: saved by swtdx {known['version']}, and this is {__version__}; "
                    "save the TD again"
                )
            self._engine = str(known["engine"])
            self._tsc, self._tsc_hz = int(known["tsc"]), float(known["tsc_hz"])
            try:
                self.about = About(**known["about"])
            except TypeError as error:
                raise section.fail(f"its description makes no sense: {error}") from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; machines that have gone on from it do not need it."""
        self._snapshot.close()

    def platform(self) -> Platform:
        """A machine as it was saved, on which nothing runs yet.

        Raises:
            SnapshotError: another QEMU, another clock, software that is not here any more, or nonsense.
            EngineError: QEMU cannot be started.
        """
        from swtdx.platform import Platform

        platform = Platform.read(self._snapshot, (self._tsc, self._tsc_hz))
        try:
            self._check(platform)
        except BaseException:
            platform.close()
            raise
        platform.machine.random.diverge(os.urandom(32))
        return platform

    def launch(self, platform: Platform, config: LaunchConfig, console: Console | None = None) -> Launch:
        """The TD on ``platform``, which :meth:`platform` has made; :meth:`Launch.run` goes on with it.

        ``config`` says where its streams lead; what it says of the TD itself does not count.

        Raises:
            SnapshotError: the file's contents make no sense.
        """
        from swtdx.vmm.launch import Launch

        section = self._snapshot.section(_HYPERVISOR, VERSION)
        try:
            launch = Launch(platform.host, config, console, saved=section)
            section.end()
        except SnapshotError:
            raise
        except _NONSENSE as error:
            raise section.fail(f"its contents make no sense: {error!r}") from None
        return launch

    def _check(self, platform: Platform) -> None:
        """The TD must find the processor that it knows."""
        engine = platform.machine.engine
        if engine.version != self._engine:
            raise SnapshotError(
                f"{self.path}: saved on {self._engine}, and here is {engine.version}: its processor is "
                "another model; save the TD again"
            )
        if abs(engine.tsc_hz / self._tsc_hz - 1) > _CLOCK_TOLERANCE:
            raise SnapshotError(
                f"{self.path}: saved on a computer whose time-stamp counter runs at {self._tsc_hz / 1e6:.0f} "
                f"MHz, and here it is {engine.tsc_hz / 1e6:.0f} MHz; save the TD again"
            )


def _described(section: SectionReader) -> dict[str, Any]:
    try:
        known = json.loads(section.text())
    except SnapshotError:
        raise
    except ValueError as error:
        raise section.fail(f"its description makes no sense: {error}") from None
    if not isinstance(known, dict) or {"version", "engine", "tsc", "tsc_hz", "about"} - known.keys():
        raise section.fail("its description makes no sense")
    return known

"""``swtdx measure --firmware``: the registers of a TD that starts with firmware, by executing it.

The firmware runs in a TD of our own until the operating system is entered, which firmware tells by its last
extension. What it extends is seen as it happens; which event that was its log says, which is read out of the
TD's memory afterwards, as nothing but the machine's owner could.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from swtdx.arch.report_structs import NUM_RTMRS
from swtdx.arch.units import LARGE_PAGE, PAGE
from swtdx.attestation.errors import EventLogError
from swtdx.attestation.eventlog.format import Event, parse
from swtdx.attestation.eventlog.replay import replay_digests
from swtdx.cli.inputs import Unusable
from swtdx.cli.measured import Known
from swtdx.guests.errors import GuestError
from swtdx.vmm.errors import VmmError

if TYPE_CHECKING:
    from swtdx.vmm.console import Console
    from swtdx.vmm.firmware_boot import FirmwareBoot
    from swtdx.vmm.peripherals.attach import Attached
    from swtdx.vmm.peripherals.config import DiskConfig

#: edk2's last words before the operating system has the machine (``EFI_EXIT_BOOT_SERVICES_SUCCEEDED``).
_LAST_WORDS: Final = b"Exit Boot Services Returned with Success"
_ENTERED: Final = hashlib.sha384(_LAST_WORDS).digest()
#: Bytes of RAM where nothing is said.
_MEMORY: Final = 512 << 20
#: Seconds for firmware that never gets there.
_PATIENCE: Final = 300
#: Where a log's first event has its signature, and what firmware reserves for a log (edk2: 64 KiB).
_SIGNATURE: Final = b"Spec ID Event03\0"
_SIGNATURE_AT: Final = 32
_LOG_BYTES: Final = (64 << 10, 16 << 10)


@dataclass(slots=True)
class Seen:
    """What the firmware did: (RTMR, 48 bytes) of each extension, its event log, and fw_cfg's files."""

    extends: list[tuple[int, bytes]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    entered: bool = False
    end: str = ""

    @property
    def rtmrs(self) -> list[bytes]:
        """The four registers after all that."""
        return [
            replay_digests([digest for rtmr, digest in self.extends if rtmr == n]) for n in range(NUM_RTMRS)
        ]


def executed(
    firmware: Path,
    kernel: Path | None,
    initrd: bytes,
    cmdline: str,
    memory: int | None = None,
    vcpus: int | None = None,
    disks: Sequence[DiskConfig] = (),
    like_qemu: str | None = None,
) -> dict[str, Any]:
    """MRTD, RTMR0 to RTMR3, and the event of each extension.

    Raises:
        Unusable: a file is none of what it should be, or the TD cannot be built.
    """
    from swtdx.guests.kernel import load_kernel
    from swtdx.guests.like_qemu import LikeQemu
    from swtdx.guests.tdvf_boot import load_firmware
    from swtdx.vmm.firmware_boot import FirmwareBoot
    from swtdx.vmm.peripherals.attach import attach
    from swtdx.vmm.peripherals.config import Peripherals

    # To measure a disk is not to change it.
    kept = tuple(disk if disk.read_only else replace(disk, snapshot=True) for disk in disks)
    try:
        image = load_firmware(firmware)
        loaded = None if kernel is None else load_kernel(kernel)
        with contextlib.ExitStack() as during:
            like = None if like_qemu is None else during.enter_context(LikeQemu(like_qemu))
            if like is not None:
                memory = _agreed("--memory", memory, like.memory)
                vcpus = _agreed("--vcpus", vcpus, like.vcpus)
            memory, vcpus = memory or _MEMORY, vcpus or 1
            boot = FirmwareBoot(image, memory, loaded, initrd, cmdline, like=like)
            attached = during.enter_context(attach(Peripherals(disks=kept)))
            seen = _run(boot, memory, vcpus, attached)
        known = Known(boot, seen.files)
    except (GuestError, VmmError) as error:
        raise Unusable(str(error)) from None
    return {
        "firmware": str(firmware),
        "kernel": None if kernel is None else str(kernel),
        "disks": [str(disk.path) for disk in disks],
        "like_qemu": like_qemu,
        "cmdline": cmdline,
        "memory": memory,
        "vcpus": vcpus,
        "entered": seen.entered,
        "end": seen.end,
        "mrtd": image.measure().digest().hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(seen.rtmrs)},
        "events": _events(seen, known),
    }


def _agreed(option: str, ours: int | None, theirs: int) -> int:
    if ours is not None and ours != theirs:
        raise Unusable(f"{option} is {ours}, and the arguments of --like-qemu make it {theirs}: leave it out")
    return theirs


def _events(seen: Seen, known: Known) -> list[dict[str, Any]]:
    """Each extension with the event in the log that it was made for."""
    left = [event for event in seen.events if event.rtmr is not None]
    found = []
    for rtmr, digest in seen.extends:
        event = next((each for each in left if (each.rtmr, each.digest) == (rtmr, digest)), None)
        if event is not None:
            left.remove(event)
        last = digest == _ENTERED
        found.append(
            {
                "rtmr": rtmr,
                "digest": digest.hex(),
                "type": "EV_EFI_ACTION" if last else event.kind_name if event else None,
                "text": _LAST_WORDS.decode() if last else event.text() if event else None,
                "data": _LAST_WORDS.hex() if last else event.data.hex() if event else "",
                "digest_is_of_data": True if last else event.data_matches if event else None,
                **known.of(digest),
            }
        )
    return found


def _run(boot: FirmwareBoot, memory: int, vcpus: int, peripherals: Attached) -> Seen:
    from swtdx.platform import Platform, platform_config
    from swtdx.trace.extends import RtmrExtends
    from swtdx.vmm.launch import Launch, LaunchConfig
    from swtdx.vmm.result import EndReason
    from swtdx.vmm.td_params import TdConfig

    seen = Seen()
    with Platform.boot(platform_config(memory, vcpus, None, b"swtdx")) as platform:
        config = LaunchConfig(
            None,
            boot=boot,
            peripherals=peripherals,
            must_boot=True,
            td=TdConfig(vcpus=vcpus, rbp_mod=boot.passes_rbp),
            teardown=False,
        )
        launch = Launch(platform.host, config, _silent())
        private, keyid = launch.td.private, launch.td.hkid
        assert keyid is not None
        memory_of = platform.machine.memory
        bits = keyid << platform.host.keyid_shift

        def read(gpa: int, size: int) -> bytes:
            from swtdx.machine.memory import SEAM

            large = private.large.get(gpa & -LARGE_PAGE)
            page = private.small.get(gpa & -PAGE) if large is None else large + (gpa & LARGE_PAGE - PAGE)
            return b"" if page is None else memory_of.read(page | bits | gpa & PAGE - 1, size, SEAM)

        def extended(rtmr: int, digest: bytes) -> None:
            seen.extends.append((rtmr, digest))
            seen.entered = seen.entered or digest == _ENTERED

        def called() -> None:
            if seen.entered:
                launch.runner.stop(EndReason.STOPPED, "the operating system was entered")

        with RtmrExtends(platform.machine, read, extended, called):
            result = launch.run(_PATIENCE)
        seen.end = str(result)
        pages = [*private.small, *(base + at for base in private.large for at in range(0, LARGE_PAGE, PAGE))]
        seen.events = _log(sorted(pages), read)
        fw_cfg = launch.io.board.fw_cfg
        seen.files = {} if fw_cfg is None else fw_cfg.contents()
        launch.finish(result)
    return seen


def _silent() -> Console:
    """A console that shows nothing; Ctrl-C ends the run."""
    from swtdx.vmm.console import Stream

    class Silent(Stream):
        def write(self, data: bytes) -> None:
            """Nowhere."""

    return Silent()


def _log(pages: Sequence[int], read: Callable[[int, int], bytes]) -> list[Event]:
    """The event log, which begins with a page somewhere; the longest, where there are copies."""
    best: list[Event] = []
    for gpa in pages:
        if read(gpa + _SIGNATURE_AT, len(_SIGNATURE)) != _SIGNATURE:
            continue
        for size in _LOG_BYTES:
            data = b"".join(read(gpa + at, PAGE) for at in range(0, size, PAGE))
            with contextlib.suppress(EventLogError):
                best = max(best, parse(data), key=len)
    return best

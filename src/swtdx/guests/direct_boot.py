"""The plan of a TD that boots a kernel directly: our shim, and a kernel that it takes from shared memory.

:mod:`swtdx.guests.plan` says what a hypervisor does with it.  The shim (``shim/shim.S``) does the rest from
inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from swtdx.arch.event_types import EV_EFI_PLATFORM_FIRMWARE_BLOB2, EV_EVENT_TAG
from swtdx.arch.guest_map import FOUR_GIB
from swtdx.arch.units import GIB, MIB, PAGE
from swtdx.guests import event_log as log
from swtdx.guests.assemble import committed
from swtdx.guests.boot_info import Load, encode_boot_info
from swtdx.guests.boot_params import build_boot_params
from swtdx.guests.errors import DoesNotFit, GuestError
from swtdx.guests.kernel import ENTRY_64_OFFSET, KernelImage, parse_kernel
from swtdx.guests.memory_map import (
    ACPI_BYTES,
    ACPI_GPA,
    BOOT_INFO_GPA,
    BOOT_PARAMS_GPA,
    COMMAND_LINE_BYTES,
    COMMAND_LINE_GPA,
    EVENT_LOG_BYTES,
    EVENT_LOG_GPA,
    LOADS_GPA,
    SHARED_WINDOW_BYTES,
    SHIM_GPA,
    E820Entry,
    Range,
    memory_map,
)
from swtdx.guests.plan import GuestPlan, PrivatePage, SharedBlob, pages_of

GPAWS: Final = (48, 52)
#: The shim's own pages, which are not measured and which it clears or writes in full: mailbox, three page
#: tables, scratch.
_SHIM_UNMEASURED: Final = 5


class AcpiTables(Protocol):
    """ACPI tables that another room made: (GPA, bytes) of each, and where the RSDP is."""

    @property
    def tables(self) -> Sequence[tuple[int, bytes]]:
        """Each table's address and contents, inside [ACPI_GPA, ACPI_GPA + ACPI_BYTES)."""

    @property
    def rsdp_gpa(self) -> int:
        """GPA of the root system description pointer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBoot(GuestPlan):
    """Boots a kernel, or the tiny guest.  The shim does not look at ``vp_init_rdx``.

    The shared blobs are read only by the shim: once the kernel has made its first I/O or MMIO access,
    the hypervisor may take that memory back.
    """

    e820: tuple[E820Entry, ...]
    #: Events that the shim will log, and RTMR0 to RTMR3 when it enters the kernel.
    events: tuple[log.Event, ...]
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    #: Where the kernel's first instruction will be (0 for the tiny guest).
    kernel_entry: int


def build_direct_boot(
    kernel: bytes | KernelImage,
    initrd: bytes,
    cmdline: str,
    memory_bytes: int,
    gpaw: int,
    acpi: AcpiTables,
) -> DirectBoot:
    """Lay out a TD that boots ``kernel``.

    Args:
        kernel: a bzImage.
        initrd: may be empty.
        cmdline: the kernel's command line.
        memory_bytes: RAM, a whole number of pages.
        gpaw: guest-physical address width, 48 or 52: the shared bit is bit 47 or 51.
        acpi: tables placed between ``ACPI_GPA`` and ``ACPI_GPA + ACPI_BYTES``.

    Raises:
        NotAKernel: see :func:`swtdx.guests.kernel.parse_kernel`.
        DoesNotFit: too little memory, or a table, command line or initrd that is too large.
        GuestError: anything else that cannot be, such as an unknown GPAW.
    """
    image = parse_kernel(kernel) if isinstance(kernel, bytes) else kernel
    if gpaw not in GPAWS:
        raise GuestError(f"a TD's GPA width is 48 or 52 bits, not {gpaw}")
    layout = memory_map(memory_bytes)
    load_gpa = _load_address(image)
    initrd_range = _place_initrd(image, len(initrd), load_gpa, layout.low_end)
    params = build_boot_params(
        image,
        load_gpa=load_gpa,
        cmdline_gpa=COMMAND_LINE_GPA,
        initrd=initrd_range if initrd else None,
        e820=layout.e820,
        rsdp_gpa=acpi.rsdp_gpa,
    )
    staging = _Staging(-(-max(FOUR_GIB, layout.end) // GIB) * GIB)
    loads = [
        staging.load(
            "boot parameters", params, BOOT_PARAMS_GPA, 0, log.EV_PLATFORM_CONFIG_FLAGS, b"boot_params"
        ),
        staging.load("ACPI tables", _flatten(acpi), ACPI_GPA, 0, log.EV_PLATFORM_CONFIG_FLAGS, b"ACPI DATA"),
        # The whole file, so that its hash is that of `sha384sum vmlinuz`; its real-mode part ends where
        # the protected-mode code has to start.
        staging.load(
            "kernel",
            image.data,
            load_gpa - image.setup_bytes,
            1,
            EV_EFI_PLATFORM_FIRMWARE_BLOB2,
            log.firmware_blob(b"kernel", load_gpa - image.setup_bytes, len(image.data)),
        ),
        staging.load(
            "command line",
            _encode_cmdline(image, cmdline),
            COMMAND_LINE_GPA,
            2,
            log.EV_IPL,
            b"kernel_cmdline: ",
            log_content=True,
        ),
    ]
    if initrd:
        tag = log.tagged_event(log.INITRD_EVENT_TAG_ID, b"Linux initrd\0")
        loads.append(staging.load("initrd", initrd, initrd_range.base, 2, EV_EVENT_TAG, tag))
    if staging.end > SHARED_WINDOW_BYTES:
        raise DoesNotFit(f"the shim cannot boot a TD with more than {SHARED_WINDOW_BYTES // GIB - 1} GiB")
    events = tuple(load.measured_event() for load in loads)
    if len(log.encode_log(events)) > EVENT_LOG_BYTES:
        raise DoesNotFit(f"the event log would not fit into {EVENT_LOG_BYTES} bytes")
    entry = load_gpa + ENTRY_64_OFFSET
    info = encode_boot_info(
        ram=layout.ram,
        loads=loads,
        entry=entry,
        boot_params=BOOT_PARAMS_GPA,
        log=Range(EVENT_LOG_GPA, EVENT_LOG_BYTES),
    )
    shared_bit = 1 << (gpaw - 1)
    return DirectBoot(
        pages=_shim_pages(info),
        shared=tuple(SharedBlob(load.source | shared_bit, load.content) for load in loads),
        ram=layout.ram,
        e820=layout.e820,
        vp_init_rdx=BOOT_INFO_GPA,
        events=events,
        rtmrs=log.replay(events),
        kernel_entry=entry,
    )


def build_tiny_boot() -> DirectBoot:
    """The tiny guest: says hello on port 0x3F8, shows what it is, and powers off.  It has no RAM."""
    code = committed("tiny")
    base = FOUR_GIB - len(code)
    scratch = [
        PrivatePage(SHIM_GPA + PAGE * i, bytes(PAGE), measured=False) for i in range(1, _SHIM_UNMEASURED)
    ]
    return DirectBoot(
        pages=(*scratch, *pages_of(base, code, measured=True)),
        e820=(),
        events=(),
        rtmrs=log.replay(()),
        kernel_entry=0,
    )


class _Staging:
    """Hands out page-aligned places in shared memory, one after the other, beyond all RAM."""

    def __init__(self, base: int) -> None:
        self.end = base

    def load(
        self,
        name: str,
        content: bytes,
        target: int,
        rtmr: int,
        event_type: int,
        event: bytes,
        *,
        log_content: bool = False,
    ) -> Load:
        source = self.end
        self.end += -(-len(content) // PAGE) * PAGE
        return Load(name, content, source, target, rtmr, event_type, event, log_content)


def _load_address(kernel: KernelImage) -> int:
    """Where the protected-mode code goes: where it prefers to be, else the first aligned place."""
    wanted = kernel.pref_address
    if wanted - kernel.setup_bytes >= LOADS_GPA:
        return wanted
    if not kernel.relocatable:
        raise DoesNotFit(f"{kernel.name} must be loaded at {wanted:#x}, where the TD's tables are")
    aligned: int = -(-max(LOADS_GPA + kernel.setup_bytes, 16 * MIB) // kernel.kernel_alignment)
    return aligned * kernel.kernel_alignment


def _place_initrd(kernel: KernelImage, size: int, load_gpa: int, low_end: int) -> Range:
    """The highest place for the initrd, above all that the kernel needs while it unpacks itself."""
    kernel_end = load_gpa + max(kernel.init_size, len(kernel.data) - kernel.setup_bytes)
    top = min(low_end, kernel.initrd_addr_max + 1)
    base = (top - size) // PAGE * PAGE
    if base < kernel_end:
        if low_end > kernel.initrd_addr_max:
            raise DoesNotFit(f"an initrd of {size} bytes is too large for {kernel.name}")
        needed = -(-(kernel_end + size + PAGE) // (2 * MIB)) * 2
        raise DoesNotFit(
            f"{low_end // MIB} MiB of memory are too few for {kernel.name}: it needs at least {needed} MiB "
            "to unpack itself (and more to run: try 512M)"
        )
    return Range(base, size)


def _encode_cmdline(kernel: KernelImage, cmdline: str) -> bytes:
    try:
        encoded = cmdline.encode("ascii")
    except UnicodeEncodeError as error:
        bad = cmdline[error.start]
        raise GuestError(f"a kernel command line is plain ASCII, without {bad!r}") from error
    if b"\0" in encoded:
        raise GuestError("a kernel command line cannot hold a NUL byte")
    limit = min(kernel.cmdline_size, COMMAND_LINE_BYTES - 1)
    if len(encoded) > limit:
        raise DoesNotFit(f"the command line has {len(encoded)} bytes; {kernel.name} takes {limit}")
    return encoded


def _flatten(acpi: AcpiTables) -> bytes:
    """All tables as one piece from ``ACPI_GPA`` on, with zeros between them."""
    tables = sorted(acpi.tables)
    end = ACPI_GPA
    for gpa, data in tables:
        if gpa < end or gpa + len(data) > ACPI_GPA + ACPI_BYTES:
            raise DoesNotFit(
                f"an ACPI table at {gpa:#x}..{gpa + len(data):#x} overlaps another or leaves "
                f"{ACPI_GPA:#x}..{ACPI_GPA + ACPI_BYTES:#x}"
            )
        end = gpa + len(data)
    area = bytearray(end - ACPI_GPA)
    for gpa, data in tables:
        area[gpa - ACPI_GPA : gpa - ACPI_GPA + len(data)] = data
    return bytes(area)


def _shim_pages(info: bytes) -> tuple[PrivatePage, ...]:
    code = committed("shim")
    scratch = (PrivatePage(SHIM_GPA + PAGE * i, bytes(PAGE), measured=False) for i in range(_SHIM_UNMEASURED))
    return (
        *scratch,
        PrivatePage(BOOT_INFO_GPA, info, measured=True),
        *pages_of(FOUR_GIB - len(code), code, measured=True),
    )

"""``swtdx measure``: the MRTD that a TD will have, computed from files alone.

Exit status: 0 measured (with --quote: the quote has one of the values), 1 it has not, 2 wrong use, or a file
that cannot be measured.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swtdx.cli.device_options import DiskText
from swtdx.cli.inputs import Unusable, read_bytes
from swtdx.cli.sizes import Size
from swtdx.guests.choice import OWN_INITRD_CMDLINE
from swtdx.measure.errors import MeasureError
from swtdx.measure.mrtd import MrtdStream, Order, Region
from swtdx.measure.tdvf import MR_EXTEND, PAGE_AUG, TdvfImage, parse_tdvf

if TYPE_CHECKING:
    from swtdx.guests.direct_boot import DirectBoot
    from swtdx.guests.event_log import Event
    from swtdx.vmm.peripherals.config import DiskConfig

_FILE: Final = click.Path(dir_okay=False, path_type=Path)
#: Bytes of a kernel or an initrd at most.
_LARGEST: Final = 1 << 30


@click.command()
@click.argument("image", type=_FILE, required=False)
@click.option(
    "--firmware",
    type=_FILE,
    help="Run this TDVF image in a TD until the kernel has taken over: all registers.",
)
@click.option(
    "--disk",
    "disks",
    type=DiskText(),
    multiple=True,
    metavar="FILE",
    help="With --firmware: a disk, as for `swtdx run`; it is not written to.",
)
@click.option(
    "--like-qemu",
    metavar="ARGS",
    help="With --firmware: fw_cfg files and ACPI tables of the QEMU here, for these arguments of its.",
)
@click.option("--kernel", type=_FILE, help="Measure what `swtdx run` builds of this kernel instead.")
@click.option("--initrd", type=_FILE, help="With --kernel: the initial RAM disk.")
@click.option("--append", help="With --kernel: add this to the kernel command line.")
@click.option("--cmdline", help="With --kernel: replace the kernel command line by this.")
@click.option("--memory", type=Size(), help="With --kernel: the TD's memory.  [default: 512M]")
@click.option("--vcpus", type=click.IntRange(1, 255), help="With --kernel: how many vCPUs.  [default: 1]")
@click.option("--gpaw", type=click.Choice(["48", "52"]), help="With --kernel: GPA width.  [default: 48]")
@click.option(
    "--order",
    type=click.Choice([each.value for each in Order]),
    help="With IMAGE: the VMM's order of calls, page by page (current QEMU) or all PAGE.ADDs of a section "
    "before its MR.EXTENDs (QEMU 8.2.2 of Ubuntu's TDX stack).  [default: show both]",
)
@click.option(
    "--quote", metavar="QUOTE", help="Say which order gives this quote's MRTD (exit status 1: none)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def measure(
    image: Path | None,
    firmware: Path | None,
    disks: tuple[DiskConfig, ...],
    like_qemu: str | None,
    kernel: Path | None,
    initrd: Path | None,
    append: str | None,
    cmdline: str | None,
    memory: int | None,
    vcpus: int | None,
    gpaw: str | None,
    order: str | None,
    quote: str | None,
    as_json: bool,
) -> None:
    """Compute the MRTD of a TD without a machine.

    IMAGE is a TDVF firmware image such as OVMF.fd. Its MRTD depends on the order in which the VMM adds and
    measures pages, and QEMU's versions differ: both values are shown, and --quote says which one a TD has.
    With --kernel it is the TD that `swtdx run` builds with the same kernel, initrd, command line, memory
    and number of vCPUs: MRTD, and the RTMRs when the kernel starts. With --firmware and --kernel or --disk it
    is the TD of `swtdx run --firmware`: the firmware, and a boot loader on the disk, are executed until the
    kernel has taken over, and each extension is shown with the event that was logged for it. With
    --like-qemu firmware gets the tables of the QEMU on this computer, for a line as a script has it: RTMR0 is
    then that of such a host, but for boot variables, which follow from the devices.
    """
    given = {
        "initrd": initrd,
        "append": append,
        "cmdline": cmdline,
        "memory": memory,
        "vcpus": vcpus,
        "gpaw": gpaw,
    }
    extra = [f"--{name}" for name, value in given.items() if value is not None]
    if firmware is not None:
        if image is not None or order is not None or gpaw is not None:
            raise click.UsageError("--firmware goes without IMAGE, --order and --gpaw")
        if kernel is None and (initrd is not None or cmdline is not None or append is not None):
            raise click.UsageError("--initrd, --cmdline and --append go with --kernel")
    elif like_qemu is not None:
        raise click.UsageError("--like-qemu goes with --firmware")
    elif disks:
        raise click.UsageError("--disk goes with --firmware")
    elif (image is None) == (kernel is None):
        raise click.UsageError("give a firmware image, or --kernel and what goes with it")
    try:
        if firmware is not None:
            from swtdx.cli.measure_boot import executed

            summary = executed(
                firmware,
                kernel,
                b"" if initrd is None else read_bytes(initrd, "an initrd", _LARGEST),
                f"{OWN_INITRD_CMDLINE if cmdline is None else cmdline} {append or ''}".strip(),
                memory,
                vcpus,
                disks,
                like_qemu,
            )
        elif kernel is not None:
            if order is not None:
                raise click.UsageError("--order: only with a firmware image")
            summary = _direct_boot(
                read_bytes(kernel, "a bzImage", _LARGEST),
                kernel,
                b"" if initrd is None else read_bytes(initrd, "an initrd", _LARGEST),
                f"{OWN_INITRD_CMDLINE if cmdline is None else cmdline} {append or ''}".strip(),
                512 << 20 if memory is None else memory,
                vcpus or 1,
                int(gpaw or "48"),
            )
        else:
            assert image is not None
            if extra:
                raise click.UsageError(f"{', '.join(extra)}: only with --kernel")
            summary = _firmware(image, [Order(order)] if order else list(Order))
    except MeasureError as error:
        raise Unusable(str(error)) from None
    found = True
    if quote is not None:
        found = _compare(summary, quote)
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        _show(summary)
    if not found:
        raise click.exceptions.Exit(1)


def _compare(summary: dict[str, Any], quote: str) -> bool:
    """Say in ``summary`` which of its values are a quote's; whether one of the MRTDs is."""
    from swtdx.attestation.errors import AttestationError
    from swtdx.attestation.kinds import parsed

    try:
        body = parsed(read_bytes(quote, "the quote")).body()
    except AttestationError as error:
        raise Unusable(f"{quote}: {error}") from None
    actual = body["mrtd"].hex()
    orders = summary.get("mrtd_by_order", {"page": summary["mrtd"]})
    fits = [name for name, value in orders.items() if value == actual]
    summary["quote"] = {"mrtd": actual, "order": fits[0] if fits else None}
    for number in range(4):
        if (name := f"rtmr{number}") in summary:
            summary["quote"][name] = body[name].hex()
    return bool(fits)


def _firmware(path: Path, orders: list[Order]) -> dict[str, Any]:
    data = read_bytes(path, "a firmware image")
    try:
        tdvf = parse_tdvf(data)
        streams = {order: tdvf.measure(order) for order in orders}
    except MeasureError as error:
        raise MeasureError(f"{path}: {error}") from None
    stream = streams[orders[0]]
    return {
        "image": str(path),
        "bytes": len(data),
        "sha384": hashlib.sha384(data).hexdigest(),
        "metadata": {"style": tdvf.style, "descriptor": tdvf.descriptor},
        "sections": _sections(tdvf),
        "pages": {"added": stream.pages, "measured": stream.measured_pages},
        "mrtd": stream.digest().hex(),
        "mrtd_by_order": {order.value: each.digest().hex() for order, each in streams.items()},
    }


def _sections(tdvf: TdvfImage) -> list[dict[str, Any]]:
    return [
        {
            "type": section.type.name,
            "gpa": section.gpa,
            "size": section.size,
            "file_offset": section.data_offset,
            "file_bytes": section.data_size,
            "mr_extend": bool(section.attributes & MR_EXTEND),
            "page_aug": bool(section.attributes & PAGE_AUG),
        }
        for section in tdvf.sections
    ]


def _direct_boot(
    kernel: bytes, path: Path, initrd: bytes, cmdline: str, memory: int, vcpus: int, gpaw: int
) -> dict[str, Any]:
    from swtdx.guests.errors import GuestError
    from swtdx.guests.kernel import parse_kernel
    from swtdx.vmm.errors import VmmError
    from swtdx.vmm.launch import LaunchConfig, plan
    from swtdx.vmm.td_params import TdConfig

    try:
        config = LaunchConfig(
            kernel=parse_kernel(kernel, path.name),
            initrd=initrd,
            cmdline=cmdline,
            memory=memory,
            td=TdConfig(vcpus=vcpus, gpaw=gpaw),
        )
        boot = plan(config)
    except (GuestError, VmmError) as error:
        raise Unusable(str(error)) from None
    regions = _regions(boot)
    stream = MrtdStream()
    for region in regions:
        stream.add(region)
    return {
        "kernel": str(path),
        "cmdline": cmdline,
        "memory": memory,
        "vcpus": vcpus,
        "gpaw": gpaw,
        "regions": [
            {"gpa": region.gpa, "size": region.size, "mr_extend": region.measured} for region in regions
        ],
        "pages": {"added": stream.pages, "measured": stream.measured_pages},
        "mrtd": stream.digest().hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(boot.rtmrs)},
        "events": [_event(event) for event in boot.events],
    }


def _regions(boot: DirectBoot) -> list[Region]:
    """The pages in their order, neighbours of one kind put together."""
    regions: list[Region] = []
    for page in boot.pages:
        last = regions[-1] if regions else None
        if last and last.gpa + last.size == page.gpa and last.measured == page.measured:
            data = bytes(last.data) + page.data
            regions[-1] = Region(last.gpa, last.size + len(page.data), data, last.measured)
        else:
            regions.append(Region(page.gpa, len(page.data), page.data, page.measured))
    return regions


def _event(event: Event) -> dict[str, Any]:
    return {"rtmr": event.rtmr, "type": event.event_type, "digest": event.digest.hex()}


# ---------------------------------------------------------------------- for people
def _show(summary: dict[str, Any]) -> None:
    from rich.table import Table

    from swtdx.cli.consoles import PlainConsole as Console

    console = Console(highlight=False, soft_wrap=True)
    if "entered" in summary:
        _show_executed(summary, console)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    if "sections" in summary:
        console.print(
            f"{summary['image']}: {summary['bytes']} bytes, SHA-384 {summary['sha384']}", markup=False
        )
        metadata = summary["metadata"]
        console.print(f"TDX metadata at {metadata['descriptor']:#x} ({metadata['style']})\n", markup=False)
        for name in ("Section", "GPA", "Size", "In file", "How its pages come"):
            table.add_column(name, no_wrap=True)
        for row in summary["sections"]:
            where = f"{row['file_offset']:#x} +{row['file_bytes']:#x}" if row["file_bytes"] else "-"
            how = "MEM.PAGE.AUG" if row["page_aug"] else _how(row["mr_extend"])
            table.add_row(row["type"], f"{row['gpa']:#012x}", f"{row['size']:#x}", where, how)
    else:
        for name in ("GPA", "Size", "How its pages come"):
            table.add_column(name, no_wrap=True)
        for row in summary["regions"]:
            table.add_row(f"{row['gpa']:#012x}", f"{row['size']:#x}", _how(row["mr_extend"]))
    console.print(table)
    pages = summary["pages"]
    console.print(f"\n{pages['added']} pages added, {pages['measured']} of them measured", markup=False)
    by_order = summary.get("mrtd_by_order", {})
    if by_order:
        for name, value in by_order.items():
            order = Order(name)
            words = "page by page" if order is Order.PAGE else "all pages of a section before its extends"
            console.print(f"MRTD   {value}  {words}: {order.who}", markup=False)
    else:
        console.print(f"MRTD   {summary['mrtd']}")
    for number in range(4):
        if (key := f"rtmr{number}") in summary:
            console.print(f"RTMR{number}  {summary[key]}")
    if "quote" in summary:
        console.print("\n" + _quoted(summary), markup=False)


def _show_executed(summary: dict[str, Any], console: Any) -> None:
    for number, event in enumerate(summary["events"]):
        doubt = "  DIGEST IS NOT OF THE DATA" if event["digest_is_of_data"] is False else ""
        kind, text = event["type"] or "not in the log", event["text"] or ""
        line = f"{number:>4} RTMR{event['rtmr']}  {kind:<34} {event['digest'][:16]} {text}{doubt}"
        console.print(line, markup=False)
    console.print()
    console.print(f"MRTD   {summary['mrtd']}")
    for number in range(4):
        console.print(f"RTMR{number}  {summary[f'rtmr{number}']}")
    if not summary["entered"]:
        console.print(f"\nThe kernel was not seen to take over: {summary['end']}", markup=False)
    if "quote" in summary:
        console.print("\n" + _quoted(summary), markup=False)


def _quoted(summary: dict[str, Any]) -> str:
    quote = summary["quote"]
    if quote["order"] is None:
        return (
            f"The quote's MRTD is neither: {quote['mrtd']}"
            if "sections" in summary
            else (f"The quote's MRTD is another: {quote['mrtd']}")
        )
    if "sections" in summary:
        order = Order(quote["order"])
        words = "page by page" if order is Order.PAGE else "all pages of a section before its extends"
        return f"The quote's MRTD is that of the order {order.value}: {words} ({order.who})"
    others = [name.upper() for name in quote if name.startswith("rtmr") and quote[name] != summary[name]]
    return "The quote's MRTD is this one" + (f"; {', '.join(others)} differ" if others else ", and its RTMRs")


def _how(extended: bool) -> str:
    return "MEM.PAGE.ADD, MR.EXTEND" if extended else "MEM.PAGE.ADD"

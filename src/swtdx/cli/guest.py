"""``swtdx guest``: kernels that can be TDs, in the user's cache and in the system's package sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import click

from swtdx.cli.failures import complain
from swtdx.cli.sizes import size_text
from swtdx.guests.cache import Cache
from swtdx.guests.errors import CacheError
from swtdx.guests.fetch import available_kernels, fetch_guest
from swtdx.guests.firmware import PACKAGES, Firmware, fetch_firmware
from swtdx.guests.guest import KIND, Guest, cached_guests
from swtdx.guests.progress import Bar


@click.group()
def guest() -> None:
    """Kernels that can be TDs: fetched by the system's package tool, without root, into your cache."""


@guest.command("fetch")
@click.argument("version", required=False)
@click.option("--again", is_flag=True, help="Fetch even if the cache has it, or has an older one.")
@click.option("--ovmf", is_flag=True, help="Fetch the firmware OVMF with TDX support instead of a kernel.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def guest_fetch(version: str | None, again: bool, ovmf: bool, as_json: bool) -> None:
    """Fetch a kernel, its modules and busybox.

    VERSION is a kernel's release or its beginning, such as 7.2; without it: what `swtdx run` boots, which is
    the newest 6.12 in the cache, else the newest kernel there, else what can be had, in the same order.
    """
    if ovmf:
        if version is not None:
            raise click.UsageError("--ovmf takes no VERSION")
        with Bar() as bar:
            _show_firmware(fetch_firmware(progress=bar, again=again), as_json=as_json)
        return
    with Bar() as bar:
        found = fetch_guest(version, progress=bar, again=again)
    if as_json:
        click.echo(json.dumps(_document(found), indent=2))
    else:
        _show(found)


def _show_firmware(firmware: Firmware, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"version": firmware.version, "image": str(firmware.image)}, indent=2))
    else:
        click.echo(f"OVMF {firmware.version}: {firmware.image}")


@guest.command("firmware")
@click.option("--suite", metavar="NAME", help="Of this release, such as trixie or sid [the system's own].")
@click.option(
    "--package", type=click.Choice(PACKAGES), default=PACKAGES[0], show_default=True, help="Which build."
)
@click.option("--again", is_flag=True, help="Fetch even if the cache has it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def guest_firmware(suite: str | None, package: str, again: bool, as_json: bool) -> None:
    """Fetch the firmware OVMF with TDX support, for `swtdx run --firmware`.

    The package ovmf-inteltdx has Secure Boot on: it starts a kernel only if it is signed.
    """
    with Bar() as bar:
        _show_firmware(fetch_firmware(suite, package, progress=bar, again=again), as_json=as_json)


@guest.command("list")
@click.option("--available", is_flag=True, help="What could be fetched instead of what is in the cache.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def guest_list(available: bool, as_json: bool) -> None:
    """List the kernels in the cache, the newest first, after checking every file."""
    if available:
        with Bar() as bar:
            releases = available_kernels(progress=bar)
        click.echo(json.dumps(releases, indent=2) if as_json else "\n".join(releases))
        return
    cache = Cache()
    guests = cached_guests(cache)
    if as_json:
        click.echo(json.dumps([_document(one) for one in guests], indent=2))
    else:
        for one in guests:
            _show(one)
    whole = {one.kernel.parent.name for one in guests}
    for name in cache.names(KIND):
        if name not in whole:
            complain(
                f"{cache.root / KIND / name} is damaged; `swtdx guest remove {_version(name)}` removes it"
            )
    if not guests and not as_json:
        complain(f"no guests in {cache.root}; `swtdx guest fetch` fetches one")


@guest.command("remove")
@click.argument("version")
def guest_remove(version: str) -> None:
    """Remove the kernel with exactly this VERSION from the cache."""
    cache = Cache()
    if version not in map(_version, cache.names(KIND)):
        raise CacheError(
            f"there is no guest {version} in {cache.root}; `swtdx guest list` shows what is there"
        )
    with Bar() as bar, cache.lock(bar):
        cache.remove(KIND, f"linux-{version}")


@guest.command("symbols")
@click.argument("kallsyms", type=click.File("rb"))
@click.option("-o", "--output", required=True, metavar="FILE", help="Write the symbol file there.")
def guest_symbols(kallsyms: BinaryIO, output: str) -> None:
    """Make a file that GDB takes a kernel's symbols from, of its /proc/kallsyms (- is standard input)."""
    from swtdx.gdb.symbols import SymbolsError, symbol_file

    try:
        data = symbol_file(kallsyms.read())
    except SymbolsError as error:
        raise click.ClickException(str(error)) from None
    Path(output).write_bytes(data)


def _version(entry: str) -> str:
    return entry.removeprefix("linux-")


def _bytes(found: Guest) -> int:
    paths = [found.kernel, found.busybox, *found.modules]
    return sum(path.stat().st_size for path in paths)


def _document(found: Guest) -> dict[str, Any]:
    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return {
        "version": found.version,
        "kernel": text(found.kernel),
        "modules": [text(path) for path in found.modules],
        "busybox": text(found.busybox),
        "config": text(found.config),
        "source": found.source,
    }


def _show(found: Guest) -> None:
    click.echo(f"{found.version:<36} {size_text(_bytes(found)):>11}  {found.source}")
    click.echo(f"    {found.kernel}")

"""``swtdx platform``: brings up a machine's firmware and prints what it found.

Exit status: 0 done, 1 the firmware refuses the platform, 2 wrong use.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from swtdx.cli.consoles import PlainConsole as Console
from swtdx.cli.seeds import Seed
from swtdx.cli.sizes import Size, size_text
from swtdx.firmware.bios import BiosConfig
from swtdx.firmware.errors import FirmwareError
from swtdx.machine.cpu.model import DEFAULT_MODEL, MODELS
from swtdx.machine.machine import MachineConfig
from swtdx.machine.memory import Integrity
from swtdx.machine.memory.matrix import Cell, run_matrix
from swtdx.platform import Platform, PlatformConfig

if TYPE_CHECKING:  # generic only in newer releases of click
    _CmrBase = click.ParamType[tuple[int, int]]
else:
    _CmrBase = click.ParamType


class Cmr(_CmrBase):
    """A convertible memory range, BASE:SIZE."""

    name = "base:size"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(base, size) in bytes."""
        if isinstance(value, tuple):
            return value
        base, colon, size = str(value).partition(":")
        if not colon:
            self.fail(f"{value!r} is not a range; write 1M:1G for 1 GiB from 1 MiB on", param, ctx)
        return Size().convert(base, param, ctx), Size().convert(size, param, ctx)


@click.command()
@click.option("--packages", default=1, show_default=True, help="Processor packages (1 to 8).")
@click.option("--cpus", default=2, show_default=True, help="Logical processors of each package.")
@click.option("--memory", type=Size(), default="4G", show_default=True, help="DRAM of the machine.")
@click.option(
    "--seed",
    type=Seed(),
    default="swtdx",
    show_default=True,
    help="The machine's identity, text or 0xHEX or @FILE: same seed, same keys.",
)
@click.option("--model", type=click.Choice(sorted(MODELS)), default=DEFAULT_MODEL, show_default=True)
@click.option("--keyid-bits", default=6, show_default=True, help="KeyID bits in physical addresses.")
@click.option("--tdx-keyid-bits", default=1, show_default=True, help="How many of them TDX gets.")
@click.option(
    "--integrity",
    type=click.Choice([mode.value for mode in Integrity]),
    default=Integrity.CRYPTOGRAPHIC.value,
    show_default=True,
    help="Protection of private memory: TD-owner bit only, or a MAC too.",
)
@click.option("--seamrr-size", type=Size(), default="32M", show_default=True, help="The SEAM range.")
@click.option(
    "--cmr", "cmrs", type=Cmr(), multiple=True, help="Convertible range; default: all that is free."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--access-matrix", is_flag=True, help="Try every access on every kind of line and print it.")
def platform(
    packages: int,
    cpus: int,
    memory: int,
    seed: bytes,
    model: str,
    keyid_bits: int,
    tdx_keyid_bits: int,
    integrity: str,
    seamrr_size: int,
    cmrs: tuple[tuple[int, int], ...],
    as_json: bool,
    access_matrix: bool,
) -> None:
    """Print the machine: packages, CPUs, CMRs, KeyIDs, SEAMRR, and who runs in SEAM."""
    if access_matrix:
        _access_matrix(Integrity(integrity), as_json)
        return
    config = PlatformConfig(
        machine=MachineConfig(
            packages=packages,
            processors_per_package=cpus,
            memory_bytes=memory,
            seed=seed,
            options={"model": model},
        ),
        bios=BiosConfig(
            seamrr_size=seamrr_size,
            cmrs=cmrs or None,
            keyid_bits=keyid_bits,
            tdx_keyid_bits=tdx_keyid_bits,
            integrity=Integrity(integrity),
        ),
    )
    try:
        with Platform.boot(config) as booted:
            summary = booted.summary()
    except (FirmwareError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(summary, indent=2))
    else:
        _show(summary, _console())


# ---------------------------------------------------------------------- for people
def _console() -> Console:
    """As wide as the terminal; where there is none (a pipe, a file), no line is folded."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _range(where: dict[str, int]) -> str:
    return f"{where['base']:#014x}-{where['base'] + where['size'] - 1:#014x}  {size_text(where['size'])}"


def _show(summary: dict[str, Any], console: Console) -> None:
    processor, keyids, memory = summary["processor"], summary["keyids"], summary["memory"]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def rows(label: str, *lines: str) -> None:
        for number, line in enumerate(lines):
            table.add_row(label if number == 0 else "", line)

    rows(
        "Processor",
        f"{processor['brand']}, CPUID {processor['signature']:#x}, microcode {processor['microcode']:#x}",
        f"CPUSVN {processor['cpusvn']}, {processor['maxpa']} physical address bits",
    )
    for package in summary["packages"]:
        ids = ", ".join(f"{lp['index']} (x2APIC id {lp['x2apic_id']})" for lp in package["processors"])
        rows(f"Package {package['package']}", f"CPUs {ids}")
    rows("DRAM", *map(_range, memory["dram"]))
    rows("CMRs", *(map(_range, memory["cmrs"]) if memory["cmrs"] else ("none",)))
    rows("SEAMRR", _range(memory["seamrr"]))
    rows("SMRR", _range(memory["smrr"]))
    shared, private = keyids["shared"], keyids["private"]
    rows(
        "KeyIDs",
        f"shared {shared['first']}-{shared['last']}, private {private['first']}-{private['last']}, "
        f"in address bits {keyids['lowest_address_bit'] + keyids['bits'] - 1}:{keyids['lowest_address_bit']}",
        f"{keyids['integrity']} integrity",
    )
    acm, loader, module = summary["np_seamldr"], summary["p_seamldr"], summary["module"]
    rows("NP-SEAMLDR", f"{acm['name']} {acm['version']}", f"measurement {acm['measurement']}")
    if loader is None:
        rows("P-SEAMLDR", "not loaded")
    else:
        rows("P-SEAMLDR", f"version {loader['version']}, built {loader['build_date']}", *(
            f"loads modules signed by {key}" for key in loader["module_signers"]
        ))  # fmt: skip
    if module is None:
        rows("TDX Module", "not loaded")
    else:
        rows(
            "TDX Module",
            f"{module['name']} {module['version']}, {module['files']} source files",
            f"TEE_TCB_SVN {module['tee_tcb_svn']}",
            f"MRSEAM {module['mrseam']}",
            f"MRSIGNERSEAM {module['mrsignerseam']}",
        )
    console.print(table)


def _access_matrix(integrity: Integrity, as_json: bool) -> None:
    """The matrix, a block for each kind of line."""
    cells = run_matrix(integrity)
    if as_json:
        rows = [{"line": cell.line, "access": cell.access, "outcome": cell.outcome} for cell in cells]
        click.echo(json.dumps({"integrity": integrity.value, "cells": rows}, indent=2))
        return
    console = _console()
    console.print(f"Every kind of line against every kind of access, {integrity.value} integrity")
    blocks: dict[str, list[Cell]] = {}
    for cell in cells:
        blocks.setdefault(cell.line, []).append(cell)
    for line, block in blocks.items():
        table = Table(title=line, title_justify="left", title_style="bold", show_header=False, box=None)
        for cell in block:
            table.add_row(cell.access, cell.outcome)
        console.print(table)


def register(group: click.Group) -> None:
    """Add the command to ``group``."""
    group.add_command(platform)

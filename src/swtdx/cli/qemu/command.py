"""``swtdx qemu``: the command."""

from __future__ import annotations

from typing import Any

import click

from swtdx.cli.nothing_run import nothing_run
from swtdx.cli.outputs import Outputs
from swtdx.cli.seeds import Seed


class _Foreign(click.Command):
    """Options of our own come first; from the first other word on the line is QEMU's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See :class:`click.Command`."""
        own, rest = [], list(args)
        flags = {name: param for param in self.params for name in param.opts}
        while rest:
            name = rest[0].partition("=")[0]
            if rest[0] in ctx.help_option_names:
                own.append(rest.pop(0))
                continue
            if name == "--":
                rest.pop(0)
                break
            param = flags.get(name)
            if not isinstance(param, click.Option):
                break
            own.append(rest.pop(0))
            if not param.is_flag and "=" not in own[-1] and rest:
                own.append(rest.pop(0))
        return super().parse_args(ctx, [*own, "--", *rest])


@click.command(cls=_Foreign)
@click.option(
    "-v", "--verbose", is_flag=True, help="Say what of the line is harmless, and what the run took."
)
@click.option("--check", is_flag=True, help="Judge the line, and start nothing.")
@click.option("--table", is_flag=True, help="List every option of QEMU's and what becomes of it.")
@click.option(
    "--own-quotes", is_flag=True, help="The machine's own enclave makes quotes, whatever the line says."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after, whatever happens.",
)
@click.option("--seed", type=Seed(), default="swtdx", show_default=True, help="The machine's identity: keys.")
@click.option("--json", "json_file", metavar="FILE", help="Write a summary for programs.")
@click.argument("line", nargs=-1, metavar="QEMU-OPTIONS...")
def qemu(line: tuple[str, ...], **given: Any) -> None:
    """Start a TD by QEMU's own command line, as it stands in a script.

    \b
    swtdx qemu -machine q35,confidential-guest-support=tdx0 \\
        -object '{"qom-type":"tdx-guest","id":"tdx0"}' -accel kvm -cpu host \\
        -bios OVMF.fd -m 2G -smp 4 -kernel vmlinuz -append console=ttyS0 -nographic

    A qemu-system-x86_64 at the front of QEMU-OPTIONS is skipped. Each option is honoured, or harmless and
    listed with -v, or refused with its name and what to do; docs/qemu.md and --table say which is which.
    Options of swtdx come before QEMU's.

    Exit status: 0 the guest switched off, 2 the line is refused, 124 --timeout is over, 125 nothing was run,
    126 the guest did not end in an orderly way.
    """
    from swtdx.cli.qemu.machine import describe
    from swtdx.cli.qemu.reading import read_line
    from swtdx.cli.qemu.table import markdown

    if given["table"]:
        click.echo(markdown(), nl=False)
        return
    if not line:
        raise click.UsageError("give the options of a QEMU that starts a TD; see `swtdx qemu --help`")
    machine = describe(read_line(line))
    if given["check"]:
        for note in machine.notes:
            click.echo(f"harmless: {note}")
        return
    from swtdx.cli.qemu.start import Own, run

    with Outputs() as outputs, nothing_run():
        summary = outputs.open(given["json_file"], "the summary")
        own = Own(given["verbose"], given["seed"], given["timeout"], given["own_quotes"], summary)
        status = run(machine, own)
    raise click.exceptions.Exit(status)

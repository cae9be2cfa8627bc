"""``swtdx quote``: boots Linux as a TD, has it ask for a quote through configfs, and brings the quote out.

Exit status: 0 done, 1 the TD gave no quote, 2 wrong use or unusable input.
"""

from __future__ import annotations

import datetime as dt
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from swtdx.attestation.keys import DEFAULT_SEED
from swtdx.attestation.quote import ParsedQuote
from swtdx.cli.attesting import Url
from swtdx.cli.deadline import Deadline, TimeIsOver
from swtdx.cli.failures import complain
from swtdx.cli.inputs import check_writable, write_bytes
from swtdx.cli.quote_service import ToldQuotes
from swtdx.cli.seeds import BytesParam, Seed
from swtdx.cli.sizes import Size
from swtdx.cli.starting import Starting
from swtdx.cli.td_options import TdWishes, td_options
from swtdx.guests.choice import Wishes, choose
from swtdx.guests.initramfs import Exec
from swtdx.guests.quote_job import REPORTDATA, Answer, command, parse_output

if TYPE_CHECKING:
    from swtdx.attestation.world import World
    from swtdx.guests.choice import Boot

#: Bytes of the nonce that is drawn when none is given.
_NONCE: Final = 32


class ReportData(BytesParam):
    """REPORTDATA in hex: all 64 bytes, or fewer (``whole`` false), which zeros fill up."""

    name = "hex"

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """The 64 bytes."""
        if isinstance(value, bytes):
            return value
        try:
            data = bytes.fromhex(str(value).removeprefix("0x"))
        except ValueError:
            self.fail(f"{value!r} is not hex", param, ctx)
        if len(data) > REPORTDATA or (self._whole and len(data) < REPORTDATA):
            self.fail(f"REPORTDATA has {REPORTDATA} bytes; these are {len(data)}", param, ctx)
        return data.ljust(REPORTDATA, b"\0")


class NoQuote(click.ClickException):
    """The TD ran and gave no quote."""

    exit_code = 1


@click.command()
@click.option("--nonce", type=ReportData(whole=False), metavar="HEX", help="REPORTDATA; zeros fill it up.")
@click.option("--report-data", type=ReportData(whole=True), metavar="HEX", help="REPORTDATA, all 64 bytes.")
@click.option("-o", "--output", default="quote.bin", show_default=True, help="The quote's file; - is stdout.")
@click.option("--collateral", metavar="FILE", help="Also write collateral that holds now (JSON).")
@click.option("--root", metavar="FILE", help="Also write the machine's simulated root certificate (PEM).")
@click.option("--eventlog", metavar="FILE", help="Also write the TD's event log (CCEL).")
@click.option("--qgs", metavar="ADDRESS", help="Quotes from this service: unix:PATH or vsock:CID[:PORT].")
@click.option("--pcs-url", type=Url(), metavar="URL", help="Where its certificates say that CRLs are.")
@click.option("--v5", is_flag=True, help="A quote of version 5.  [default: 4 unless the TD needs 5]")
@click.option("--seed", type=Seed(), default=DEFAULT_SEED.decode(), show_default=True, help="The machine.")
@click.option("--kernel", type=click.Path(path_type=Path), help="A bzImage of your own, e.g. from /boot.")
@click.option("--guest", "version", metavar="VERSION", help="A kernel of `swtdx guest fetch`, e.g. 6.12.")
@click.option("--memory", type=Size(), default="512M", show_default=True, help="The guest's memory.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds for all of it, fetching too.",
)
@td_options
def quote(
    nonce: bytes | None,
    report_data: bytes | None,
    output: str,
    collateral: str | None,
    root: str | None,
    eventlog: str | None,
    qgs: str | None,
    pcs_url: str | None,
    v5: bool,
    seed: bytes,
    kernel: Path | None,
    version: str | None,
    memory: int,
    timeout: float,
    td: TdWishes,
) -> None:
    """Boot Linux as a TD and have it make a quote, through /sys/kernel/config/tsm/report.

    Without --nonce and --report-data a nonce is drawn, and told. `swtdx verify` takes what this writes.
    """
    if nonce is not None and report_data is not None:
        raise click.UsageError("--nonce and --report-data exclude each other")
    if qgs is not None and (collateral or root):
        raise click.UsageError("with --qgs, collateral and root are those of that service's maker")
    if qgs is not None and pcs_url is not None:
        raise click.UsageError("with --qgs, the certificates are those of that service's maker")
    if qgs is not None and v5:
        raise click.UsageError("with --qgs, that service decides which version its quotes have")
    if kernel is not None and version is not None:
        raise click.UsageError("--kernel and --guest exclude each other")
    for path, what in ((output, "the quote"), (collateral, "the collateral"), (root, "the root certificate"),
                       (eventlog, "the event log")):  # fmt: skip
        if path and path != "-":
            check_writable(path, what)
    wanted = nonce or report_data or secrets.token_bytes(_NONCE).ljust(REPORTDATA, b"\0")
    job = Exec(command(wanted))
    deadline = Deadline(timeout)
    try:
        with deadline.watched("the kernel was being fetched or read"):
            boot = choose(Wishes(kernel=kernel, version=version), job, "", complain)
        answer, world = _ask(boot, job, memory, seed, qgs, deadline, 5 if v5 else None, pcs_url, td)
    except TimeIsOver as over:
        raise NoQuote(str(over)) from None
    if eventlog and not answer.eventlog:
        raise NoQuote("the kernel shows no event log (/sys/firmware/acpi/tables/data/CCEL)")
    _write(output, answer.quote)
    if collateral:
        _write(collateral, world.collateral().to_json().encode())
    if root:
        _write(root, world.pki.root.pem.encode())
    if eventlog:
        _write(eventlog, answer.eventlog)
    _tell(answer, None if output == "-" else output, collateral, root)


def _ask(
    boot: Boot,
    job: Exec,
    memory: int,
    seed: bytes,
    qgs: str | None,
    deadline: Deadline,
    quote_version: int | None,
    pcs_url: str | None,
    td: TdWishes,
) -> tuple[Answer, World]:
    """Run the TD: what it answered, and what the maker says of its platform now.

    Raises:
        NoQuote: the TD ended without a quote.
        TimeIsOver: while the TD was being built.
    """
    from swtdx.platform import Platform, platform_config
    from swtdx.quoting import Quoting, world_of

    with Starting(boot.label), Platform.boot(platform_config(memory, 1, None, seed)) as platform:
        # What goes wrong there is told with the answer.
        quotes = ToldQuotes(Quoting(platform, qgs, quote_version, pcs_url), qgs, lambda _message: None)
        # Imported only now: QEMU comes up meanwhile.
        from swtdx.vmm.command_io import CommandIo
        from swtdx.vmm.launch import Launch, LaunchConfig
        from swtdx.vmm.td_params import TdConfig

        output = bytearray()
        config = LaunchConfig(
            boot.kernel,
            boot.initrd,
            boot.cmdline,
            memory,
            td=TdConfig(**td.settings()),
            command=CommandIo(job.marker_token, output.extend),
            quote_service=quotes,
            teardown=False,
        )
        with deadline.watched("the TD was being built"):
            launch = Launch(platform.host, config)
        result = launch.finish(launch.run(deadline.left()))
        world = replace(world_of(platform, pcs_url), now=dt.datetime.now(dt.UTC))
    answer = parse_output(bytes(output))
    if isinstance(answer, str):
        ended = "" if result.exit_status is not None else f" ({result})"
        why = "" if quotes.reason is None else f": {quotes.reason}"
        raise NoQuote(f"the TD gave no quote: {answer}{why}{ended}")
    return answer, world


def _write(path: str, data: bytes) -> None:
    if path == "-":
        sys.stdout.buffer.write(data)
    else:
        write_bytes(path, data, "the quote")


def _tell(answer: Answer, path: str | None, collateral: str | None, root: str | None) -> None:
    """What the quote says, and how to verify it, on standard error."""
    parsed = ParsedQuote(answer.quote)
    body = parsed.body()
    lines = [f"a quote of version {parsed.version}, {len(answer.quote)} bytes"]
    lines += [f"  {name.upper():<10} {body[name].hex()}" for name in ("mrtd", "reportdata")]
    if path and collateral and root:
        lines.append(
            f"Verify it: swtdx verify {path} --collateral {collateral} --root {root} --accept-simulated "
            f"--nonce {body['reportdata'].rstrip(bytes(1)).hex() or '00'}"
        )
    click.echo("\n".join(lines), err=True)

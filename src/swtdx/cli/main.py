"""The ``swtdx`` command: a table of sub-commands, each imported only when it is used.

Exit status, unless a command documents its own: 0 done, 1 the answer is no (rejected, different), 2 wrong
use or unusable input, 70 a mistake of swtdx's own, 130 interrupted, 141 the reader of the output has gone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from swtdx import __version__
from swtdx.cli.lazy import Lazy, LazyGroup

#: Set by the script that `swtdx completion` prints.
COMPLETION: Final = "_SWTDX_COMPLETE"

#: Every command, in the order in which ``swtdx --help`` shows them.  One whose module is not part of this
#: installation is left out.
COMMANDS: dict[str, Lazy] = {
    "run": Lazy("swtdx.cli.run:run", "Boot a kernel as a TD: to a shell, a demonstration or one command."),
    "host": Lazy("swtdx.cli.host:host", "Boot Linux as the machine's operating system, TDX host and all."),
    "qemu": Lazy("swtdx.cli.qemu.command:qemu", "Start a TD by QEMU's own command line."),
    "guest": Lazy("swtdx.cli.guest:guest", "Fetch and list kernels that can be TDs."),
    "demo": Lazy("swtdx.cli.demo:demo", "Play scenes: #VE, interrupts, a TD's life, an attack."),
    "explain": Lazy("swtdx.cli.explain:explain", "Explain a status code, leaf, field, TDVMCALL or exit."),
    "abi": Lazy("swtdx.cli.abi:abi", "List every leaf: implemented or not, and its statuses."),
    "fuzz": Lazy("swtdx.cli.fuzz:fuzz", "Fuzz the TDX Module, as host and as guest."),
    "platform": Lazy("swtdx.cli.platform:platform", "Print the machine: CPUs, memory, keys, SEAM."),
    "measure": Lazy("swtdx.cli.measure:measure", "Compute the MRTD of an image without a machine."),
    "quote": Lazy("swtdx.cli.quote:quote", "Have a TD make a quote."),
    "verify": Lazy("swtdx.cli.verify:verify", "Verify a quote and say what it proves."),
    "show": Lazy("swtdx.cli.show:show", "Show a quote, TDREPORT, certificate ... without verifying."),
    "eventlog": Lazy("swtdx.cli.eventlog:eventlog", "Show an event log and replay it against a quote."),
    "qgs": Lazy("swtdx.cli.qgs:qgs", "Serve quotes, as Intel's quote generation service does."),
    "pcs": Lazy("swtdx.cli.pcs:pcs", "Serve the collateral of a simulated machine."),
    "vectors": Lazy("swtdx.cli.vectors:vectors", "Make test vectors for people who write verifiers."),
    "setup": Lazy("swtdx.cli.setup:setup", "Install QEMU, if it is missing."),
    "completion": Lazy("swtdx.cli.completion:completion", "Print a script for completion in a shell."),
}


@click.group(cls=LazyGroup, commands_table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="swtdx")
def cli() -> None:
    """Intel TDX in software: machine, loaders, TDX Module, hypervisor and attestation."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    from swtdx.cli.failures import INTERRUPTED, report

    if COMPLETION in os.environ:
        cli.main(prog_name="swtdx", complete_var=COMPLETION)
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Not cli.main(): it takes a broken pipe for exit status 1, which here means "the answer is no".
    try:
        with cli.make_context("swtdx", words) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt, EOFError):
        # Behind the terminal's ^C.
        click.echo(err=True)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("SWTDX_TRACEBACK", "") not in ("", "0"):
            raise
        return report(error)
    return 0


def entry() -> None:
    """The console script."""
    from swtdx.cli.descriptors import fill_standard_streams

    # Of numpy's library for linear algebra nothing is used, but as soon as it is loaded, it starts a thread
    # for each core, and those poll for work: some 0.05 s of every command, beside a QEMU that starts up.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    fill_standard_streams()
    sys.exit(main())


if __name__ == "__main__":
    entry()

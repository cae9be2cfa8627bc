"""``swtdx pcs``: the maker's collateral service, and what it serves.

Exit status: 0 done, 2 wrong use or unusable input.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import click

from swtdx.attestation.pcs.serve import DEFAULT_PORT
from swtdx.attestation.scenario import builtins
from swtdx.cli.attesting import (
    at_url,
    parse_moment,
    plain_errors,
    scenario_option,
    seed_option,
    url_option,
    world_for,
)


@click.group()
def pcs() -> None:
    """The collateral of a simulated machine: what Intel's PCS is to a real one."""


@pcs.command("serve")
@seed_option
@scenario_option
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535))
@click.option("--frozen", is_flag=True, help="Keep the scenario's time instead of following the clock.")
@url_option
@click.option("--tls-cert", metavar="FILE", help="Serve by TLS with this certificate (PEM, chain included).")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key (PEM).")
@plain_errors
def pcs_serve(
    seed: bytes,
    scenario: str,
    host: str,
    port: int,
    frozen: bool,
    url: str | None,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    """Serve collateral over HTTP, with the paths of Intel's PCS and PCCS, versions 3 and 4."""
    from swtdx.attestation.pcs.serve import Tls, serve

    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together")

    world = world_for(seed, scenario)

    def listening(where: str) -> None:
        click.echo(f"Serving collateral at {where} (root certificate: {where}/swtdx/root.pem)", err=True)
        if url is None and where != world.pcs_url:
            click.echo(
                f"Its certificates say that revocation lists are at {world.pcs_url}; with --url {where} (and "
                f"`swtdx quote --pcs-url {where}`) they say this place",
                err=True,
            )

    serve(
        world,
        host,
        port,
        clock=None if frozen else lambda: dt.datetime.now(dt.UTC),
        url=url,
        tls=None if tls_cert is None or tls_key is None else Tls(tls_cert, tls_key),
        listening=listening,
    )


@pcs.command("root")
@seed_option
@url_option
@plain_errors
def pcs_root(seed: bytes, url: str | None) -> None:
    """Write the machine's simulated root certificate (PEM) to standard output."""
    click.echo(at_url(world_for(seed, ""), url).pki.root.pem, nl=False)


@pcs.command("collateral")
@seed_option
@scenario_option
@click.option("--now", "moment", metavar="TIME", help="Issue it for this time. Default: now.")
@url_option
@plain_errors
def pcs_collateral(seed: bytes, scenario: str, moment: str | None, url: str | None) -> None:
    """Write collateral (JSON, for --collateral) to standard output."""
    world = at_url(world_for(seed, scenario), url)
    seconds = parse_moment(moment) if moment else int(dt.datetime.now(dt.UTC).timestamp())
    world = replace(world, now=dt.datetime.fromtimestamp(seconds, dt.UTC))
    click.echo(world.collateral().to_json(), nl=False)


@pcs.command("scenarios")
def pcs_scenarios() -> None:
    """List the scenarios that come along, with their verdicts."""
    for scenario in builtins():
        verdict = scenario.expect.status if scenario.expect.accepted else "rejected"
        click.echo(f"{scenario.name:<42} {verdict:<37} {scenario.title}")

"""``swtdx qgs``: a quote generation service that stands alone.

Exit status: 0 stopped, 2 wrong use or an address that cannot be had, 130 interrupted.
"""

from __future__ import annotations

import signal
from pathlib import Path

import click

from swtdx.cli.attesting import Url, at_url, plain_errors, scenario_option, seed_option, world_for


@click.group()
def qgs() -> None:
    """A quote generation service: what Intel's tdx-qgs is to a real machine."""


@qgs.command("serve")
@click.argument("address", default="unix:/tmp/swtdx-qgs.socket")
@seed_option
@scenario_option
@click.option("--pcs-url", type=Url(), metavar="URL", help="Where its certificates say that CRLs are.")
@click.option("--v5", is_flag=True, help="Quotes of version 5.  [default: 4 unless a TD needs 5]")
@plain_errors
def qgs_serve(address: str, seed: bytes, scenario: str, pcs_url: str | None, v5: bool) -> None:
    """Serve quotes at ADDRESS (unix:PATH or vsock:CID:PORT) until interrupted.

    For the TDs of `swtdx run --qgs ADDRESS` and `swtdx quote --qgs ADDRESS` with the same --seed, and for
    whatever else speaks the protocol: GET_QUOTE, GET_COLLATERAL, GET_PLATFORM_INFO. Its quotes verify
    with the collateral of `swtdx pcs serve` with that seed.
    """
    from swtdx.attestation.qgs.address import UnixAddress, parse_address
    from swtdx.attestation.qgs.collateral import collateral_source
    from swtdx.attestation.qgs.server import QgsServer
    from swtdx.quoting import enclave_of_seed

    world = at_url(world_for(seed, scenario), pcs_url)
    where = parse_address(address)
    if isinstance(where, UnixAddress):
        where = UnixAddress(Path(where.path).absolute())
    enclave = enclave_of_seed(world, 5 if v5 else None)
    server = QgsServer(enclave, where, collateral_source(world, frozen=bool(scenario)))
    # A daemon is told to end by SIGTERM; the socket's path goes with it.
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    try:
        click.echo(f"Serving quotes on {where}", err=True)
        server.serve()
    finally:
        server.stop()

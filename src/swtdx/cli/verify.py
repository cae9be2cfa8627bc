"""``swtdx verify``: what a quote proves, or what is wrong with it.

Exit status: 0 accepted, 1 rejected, 2 wrong use or unusable input.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from swtdx.attestation.collateral import Collateral
from swtdx.attestation.policy import Policy, load_policy
from swtdx.cli.attesting import hex_bytes, parse_moment, plain_errors, read_quote
from swtdx.cli.inputs import check_writable, read_bytes, write_bytes


def _collateral(
    quote: bytes, collateral: str | None, pcs: str | None, ca_file: str | None, insecure: bool
) -> Any:
    if (ca_file or insecure) and not pcs:
        raise click.UsageError("--pcs-ca and --insecure go with --pcs")
    if collateral and pcs:
        raise click.UsageError("--collateral and --pcs exclude each other")
    if collateral:
        return Collateral.from_json(read_bytes(collateral, "the collateral"))
    if pcs and (ca_file or insecure):
        from swtdx.attestation.pcs.client import PcsClient, tls_context

        ca = read_bytes(ca_file, "the CA certificate") if ca_file else None
        return PcsClient(pcs, tls_context(ca, insecure=insecure)).collateral(quote)
    if pcs:
        from swtdx.attestation.pcs.fetch import fetch_collateral

        # What dcap-qvl fetched, in our own form, of which a refusal can tell the differences.
        return Collateral.from_json(fetch_collateral(pcs, quote).to_json())
    raise click.UsageError(
        "a verifier needs collateral: give --pcs URL (for a simulated machine, that of `swtdx pcs serve`) "
        "or --collateral FILE. `swtdx show` prints what is in a quote without verifying it"
    )


@click.command()
@click.argument("quote", metavar="QUOTE")
@click.option("--policy", "policy_file", type=click.Path(), help="What to accept, in TOML.")
@click.option("--collateral", type=click.Path(), help="Collateral, JSON as dcap-qvl writes it.")
@click.option("--pcs", metavar="URL", help="Fetch the collateral from this PCS or PCCS.")
@click.option("--pcs-ca", metavar="FILE", help="Trust this CA (PEM) for the TLS of --pcs https://...")
@click.option("--insecure", is_flag=True, help="Trust anybody for the TLS of --pcs; collateral is signed.")
@click.option("--root", "root_file", type=click.Path(), help="Trusted root, PEM or DER. Default: Intel's.")
@click.option("--accept-simulated", is_flag=True, help="Accept a root that is simulated by swtdx.")
@click.option("--nonce", metavar="HEX", help="REPORTDATA must be this, padded with zeros to 64 bytes.")
@click.option("--now", "moment", metavar="TIME", help="Verify as of this time.")
@click.option("--json", "as_json", is_flag=True, help="Write the verdict as JSON.")
@click.option("--token", "token_file", type=click.Path(), help="Write an attestation result (EAR, JWT) here.")
@click.option("--token-key", type=click.Path(), help="P-256 private key in PEM that signs the token.")
@plain_errors
def verify(
    quote: str,
    policy_file: str | None,
    collateral: str | None,
    pcs: str | None,
    pcs_ca: str | None,
    insecure: bool,
    root_file: str | None,
    accept_simulated: bool,
    nonce: str | None,
    moment: str | None,
    as_json: bool,
    token_file: str | None,
    token_key: str | None,
) -> None:
    """Verify QUOTE and say what it proves, or what is wrong with it.

    QUOTE is a file, or - for standard input: binary, hex (as xxd, od or hexdump print it, too), base64,
    base64url, or JSON with the quote in it, as evidence of confidential containers, dstack and others has.
    """
    from swtdx.attestation.report import render
    from swtdx.attestation.verify import Verifier

    if bool(token_file) != bool(token_key):
        raise click.UsageError("--token and --token-key go together")
    policy = load_policy(Path(policy_file)) if policy_file else Policy()
    wanted = hex_bytes(nonce, "the nonce") if nonce is not None else None
    if wanted is not None:
        policy = policy.with_reportdata(wanted)
    if token_file:
        check_writable(token_file, "the token")
    data = read_quote(quote)
    root = read_bytes(root_file, "the root certificate") if root_file else None
    verifier = Verifier(root, policy, accept_simulated=accept_simulated)
    now = parse_moment(moment) if moment else None
    verdict = verifier.verify(data, _collateral(data, collateral, pcs, pcs_ca, insecure), now)
    if token_file and token_key:
        from swtdx.attestation.token import ear_claims, sign_token

        usable = wanted if wanted is not None and len(wanted) >= 8 else None
        token = sign_token(ear_claims(verdict, nonce=usable), read_bytes(token_key, "the key"))
        write_bytes(token_file, f"{token}\n".encode(), "the token")
    click.echo(json.dumps(verdict.document(), indent=2) if as_json else render(verdict))
    raise click.exceptions.Exit(0 if verdict.accepted else 1)

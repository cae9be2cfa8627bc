"""The commands as a user runs them: output, exit status, and no traceback whatever is given."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import httpx
import jwt
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from swtdx.attestation.eventlog.format import event, write
from swtdx.attestation.eventlog.replay import replay
from swtdx.attestation.pcs.catalogue import Catalogue
from swtdx.attestation.pcs.serve import serving
from swtdx.attestation.world import World
from swtdx.cli.attestation import parse_moment, register
from swtdx.cli.seeds import parse_seed

NOW = "2025-06-01T00:00:00Z"


@click.group()
def cli() -> None:
    """The command these are registered with."""


register(cli)


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(cli, [str(each) for each in arguments], input=stdin)
    # Click keeps an exception that got through; only its own exits may.
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    world = World()
    log = [event(0, 2, 0xD, b"kernel"), event(1, 2, 0xD, b"initrd")]
    first, second, third, fourth = replay(log)
    quote = world.quote(
        replace(world.report_fields(), rtmrs=(first, second, third, fourth), reportdata=b"n" * 64)
    )
    (folder / "quote.bin").write_bytes(quote)
    (folder / "quote.hex").write_text(quote.hex() + "\n")
    (folder / "collateral.json").write_text(world.collateral().to_json())
    (folder / "root.pem").write_text(world.pki.root.pem)
    (folder / "log.bin").write_bytes(write(log))
    (folder / "short.bin").write_bytes(write(log[:1]))
    return folder


def good(files: Path) -> list[str | Path]:
    return [
        "verify", files / "quote.bin", "--collateral", files / "collateral.json",
        "--root", files / "root.pem", "--accept-simulated", "--now", NOW,
    ]  # fmt: skip


def test_verify_accepts(files: Path) -> None:
    result = run(*good(files))
    assert result.exit_code == 0
    assert result.output.startswith("ACCEPTED")
    assert "SIMULATED" in result.output


def test_verify_json_hex_and_standard_input(files: Path) -> None:
    arguments = good(files)
    arguments[1] = files / "quote.hex"
    document = json.loads(run(*arguments, "--json").output)
    assert document["accepted"] is True
    assert document["td"]["reportdata"] == "6e" * 64
    arguments[1] = "-"
    result = run(*arguments, stdin=(files / "quote.bin").read_bytes())
    assert result.exit_code == 0


def test_verify_nonce(files: Path) -> None:
    assert run(*good(files), "--nonce", "6e" * 64).exit_code == 0
    result = run(*good(files), "--nonce", "6f" * 64)
    assert result.exit_code == 1
    assert "reportdata" in result.output


def test_verify_refuses_the_simulated_root_by_default(files: Path) -> None:
    result = run(*(each for each in good(files) if each != "--accept-simulated"))
    assert result.exit_code == 1
    assert result.output.startswith("REJECTED by the check of the root of trust")
    assert "--accept-simulated" in result.output


def test_verify_policy(files: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[td]\nattributes_required = 0x40000000\n")
    result = run(*good(files), "--policy", policy)
    assert result.exit_code == 1
    assert "lack required bits 0x40000000" in result.output
    policy.write_text("[td]\nattribute_required = 1\n")
    result = run(*good(files), "--policy", policy)
    assert result.exit_code == 2
    assert "did you mean 'attributes_required'" in result.output


def test_verify_token(files: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    result = run(
        *good(files), "--nonce", "6e" * 64, "--token", tmp_path / "t", "--token-key", tmp_path / "key.pem"
    )
    assert result.exit_code == 0
    claims = jwt.decode((tmp_path / "t").read_text().strip(), key.public_key(), ["ES256"])
    assert claims["submods"]["td"]["ear.status"] == "affirming"


def test_verify_through_the_collateral_service(files: Path) -> None:
    with serving(Catalogue(World())) as url:
        arguments = [each for each in good(files) if each not in ("--collateral", files / "collateral.json")]
        assert run(*arguments, "--pcs", url).exit_code == 0
    result = run(*arguments, "--pcs", "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "no collateral from" in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["verify", "missing"], "missing: No such file"),
        (["verify", "quote.bin"], "--pcs URL"),
        (["verify", "quote.bin", "--collateral", "collateral.json", "--pcs", "u"], "exclude each other"),
        (["verify", "quote.bin", "--collateral", "quote.bin"], "not JSON"),
        (
            ["verify", "quote.bin", "--collateral", "collateral.json", "--root", "quote.bin"],
            "neither PEM nor DER",
        ),
        (["verify", "quote.bin", "--collateral", "collateral.json", "--now", "soon"], "'soon' is not a time"),
        (["verify", "quote.bin", "--collateral", "collateral.json", "--nonce", "xy"], "is not hex"),
        (["verify", "quote.bin", "--collateral", "collateral.json", "--nonce", "00" * 65], "64 bytes"),
        (
            ["verify", "quote.bin", "--collateral", "collateral.json", "--policy", "missing"],
            "cannot read the policy",
        ),
        (["verify", "quote.bin", "--token", "t"], "go together"),
        (["eventlog", "quote.bin"], "starts with event type"),
        (["eventlog", "missing"], "No such file"),
        (["eventlog", "log.bin", "--quote", "log.bin"], "quote version 1"),
        (["eventlog", "."], "Is a directory"),
        (["pcs", "root", "--seed", "0x"], "at least one byte"),
        (["pcs", "root", "--seed", "0xzz"], "cannot be used"),
        (["pcs", "root", "--seed", "@missing"], "No such file"),
        (["pcs", "serve", "--scenario", "nothing"], "there is no scenario"),
        (["pcs", "collateral", "--scenario", "missing.toml"], "cannot read the scenario"),
        (["vectors", "make", "."], "holds other files"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    files: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    monkeypatch.chdir(files)
    result = run(*arguments)
    assert result.exit_code == 2
    assert complaint in result.output


def test_eventlog(files: Path) -> None:
    result = run("eventlog", files / "log.bin", "--quote", files / "quote.bin")
    assert result.exit_code == 0
    assert result.output.count("matches the quote") == 4
    assert "EV_IPL" in result.output
    result = run(
        "eventlog", files / "short.bin", "--quote", files / "quote.bin", "--reference", files / "log.bin"
    )
    assert result.exit_code == 1
    assert "RTMR2 DIFFERS" in result.output
    assert "the log ends before EV_IPL 'initrd'" in result.output
    document = json.loads(
        run("eventlog", files / "short.bin", "--quote", files / "quote.bin", "--json").output
    )
    assert [each["matches"] for each in document["quote"]] == [True, True, False, True]


def test_pcs_without_a_service(files: Path, tmp_path: Path) -> None:
    assert run("pcs", "root").output == (files / "root.pem").read_text()
    collateral = run("pcs", "collateral", "--now", NOW).output
    assert collateral == (files / "collateral.json").read_text()
    other = run("pcs", "root", "--seed", "another machine").output
    assert other != (files / "root.pem").read_text()
    (tmp_path / "seed").write_bytes(b"another machine")
    assert run("pcs", "root", "--seed", f"@{tmp_path / 'seed'}").output == other
    assert run("pcs", "root", "--seed", "0x" + b"another machine".hex()).output == other
    listing = run("pcs", "scenarios").output
    assert re.search(r"^pck-revoked +rejected", listing, re.M)


def test_vectors_make(tmp_path: Path) -> None:
    result = run("vectors", "make", tmp_path / "v")
    assert result.exit_code == 0
    number = int(result.output.split()[0])
    assert len(list((tmp_path / "v").rglob("quote.bin"))) == number


def test_times_and_seeds() -> None:
    assert parse_moment("1748736000") == parse_moment(NOW) == parse_moment("2025-06-01") == 1748736000
    assert parse_moment("2025-06-01T02:00:00+02:00") == 1748736000
    assert parse_seed("a text seed") == b"a text seed"


def test_pcs_serve_in_a_process_of_its_own() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = (
        "import click; from swtdx.cli.attestation import register; g = click.Group(); register(g); "
        f"g(['pcs', 'serve', '--port', '{port}', '--scenario', 'platform-revoked'])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                root = httpx.get(f"http://127.0.0.1:{port}/swtdx/root.pem")
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.1)
        assert root.text == World().pki.root.pem
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors

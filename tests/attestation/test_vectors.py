"""The test vectors: what is written in them is what dcap-qvl says, and they never change by themselves."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import dcap_qvl
import pytest

from swtdx.attestation.collateral import TcbStatus
from swtdx.attestation.errors import AttestationError
from swtdx.attestation.quote import HEADER, SGX_REPORT, TD_BODY_1_0, TD_BODY_1_5
from swtdx.attestation.vectors.factory import all_vectors, write_vectors
from swtdx.attestation.vectors.latitude import _ENTRIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vectors as a user gets them."""
    folder = tmp_path_factory.mktemp("vectors")
    write_vectors(folder)
    return folder


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def test_dcap_qvl_gives_every_written_verdict(folder: Path) -> None:
    # From the files alone, as somebody who writes a verifier would.
    root = (folder / "root.der").read_bytes()
    listing = json.loads((folder / "index.json").read_text())["vectors"]
    wrong = []
    for entry in listing:
        place = folder / entry["name"]
        expected = json.loads((place / "expected.json").read_text())
        assert expected == entry
        quote = (place / "quote.bin").read_bytes()
        collateral = dcap_qvl.QuoteCollateralV3.from_json((place / "collateral.json").read_text())
        try:
            verdict = dcap_qvl.verify_with_root_ca(quote, collateral, root, expected["now"])
            got = ("accepted", verdict.status, verdict.advisory_ids)
            right = got == (expected["verdict"], expected["status"], expected["advisories"])
        except ValueError as error:
            got = ("rejected", str(error), [])
            right = expected["verdict"] == "rejected" and expected["dcap_qvl_says"] in str(error)
        if not right:
            wrong.append((entry["name"], got))
    assert wrong == []
    assert len(listing) > 500


def test_vectors_are_deterministic(folder: Path, tmp_path: Path) -> None:
    number = write_vectors(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(folder)
    assert write_vectors(tmp_path / "again") == number
    assert digest(tmp_path / "again") == digest(folder)


def test_nothing_is_left_out() -> None:
    names = {vector.name for vector in all_vectors()}
    assert len(names) == len(list(all_vectors()))
    for label, body in (("v4", TD_BODY_1_0), ("v5-1.0", TD_BODY_1_0), ("v5-1.5", TD_BODY_1_5)):
        assert {f"claim/{name}-{label}" for name in body.fields} <= names
        assert {f"claim/qe-{name}-{label}" for name in SGX_REPORT.fields} <= names
        # All header fields are in "header/", by their own names.
        assert sum(name.startswith("header/") and name.endswith(label) for name in names) >= len(
            HEADER.fields
        )
        lengths = 5 if label != "v4" else 4
        assert sum(name.startswith("length/") and name.endswith(label) for name in names) == 4 * lengths
        for status in list(TcbStatus)[:7]:
            assert f"status/{status}-{label}" in names


def test_lenient_vectors_are_few_and_accepted() -> None:
    lenient = [vector for vector in all_vectors() if vector.lenient]
    assert all(vector.expect.accepted for vector in lenient)
    assert {vector.name.rsplit("-v", 1)[0] for vector in lenient} == {
        "length/pck-chain-minus-1",
        "truncated/padded",
        "signature/quote-negated",
        "signature/qe-report-negated",
        "chain/without-root",
        "chain/root-before-ca",
        "chain/leaf-twice",
        "chain/crlf",
        "chain/outer-type-5",
        "collateral/tcb-info-chain-leaf-only",
        "collateral/qe-identity-chain-leaf-only",
    }


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(AttestationError, match="holds other files"):
        write_vectors(tmp_path)
    with pytest.raises(AttestationError, match="cannot write vectors"):
        write_vectors(tmp_path / "thesis.tex")


def test_where_verifiers_may_differ_is_told_in_both_directions() -> None:
    found: dict[str, set[tuple[bool, bool]]] = {}
    for vector in all_vectors():
        for other in vector.document()["others_may"]:
            assert other["why"]
            assert other["document"]
            may = other["verdict"] == "accepted"
            # Another verdict, or at least another status.
            assert may != vector.expect.accepted or other["status"] != vector.expect.status, vector.name
            found.setdefault(vector.name, set()).add((vector.expect.accepted, may))
    for name, direction in {
        "scenario/qe-configuration-needed": (True, False),
        "collateral/tcb-info-space": (False, True),
        "collateral/qe-identity-newline": (False, True),
        "scenario/td-debug": (False, True),
        "scenario/td-sept-ve-enabled": (False, True),
        "scenario/tcb-info-future": (False, True),
        "scenario/td-relaunch-current-revoked": (False, True),
        "scenario/processor-ca": (True, False),
        "chain/ca-first-v4": (False, True),
        "chain/root-before-ca-v5-1.5": (True, False),
    }.items():
        assert direction in found[name], name
    # Every entry is of some vector, and what is simply broken has one answer.
    names = [vector.name for vector in all_vectors()]
    for pattern, _ in _ENTRIES:
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert not [name for name in found if name.startswith(("signature/", "claim/", "length/"))]

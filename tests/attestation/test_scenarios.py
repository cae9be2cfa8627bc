"""Every scenario gives the verdict that is written in it, according to dcap-qvl."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path

import dcap_qvl
import pytest

from swtdx.attestation.collateral import TcbStatus
from swtdx.attestation.errors import AttestationError, ScenarioError
from swtdx.attestation.scenario import builtin, builtin_names, builtins, find, parse_scenario
from swtdx.attestation.verify import Verifier, to_dcap
from swtdx.attestation.world import Fault

MINIMAL = '[expect]\nverdict = "accepted"\nstatus = "UpToDate"\n'


@pytest.mark.parametrize("name", builtin_names())
def test_dcap_qvl_gives_the_written_verdict(name: str) -> None:
    scenario = builtin(name)
    quote, collateral = scenario.quote(), to_dcap(scenario.collateral())
    root, now = scenario.world.pki.root.der, int(scenario.world.now.timestamp())
    if scenario.expect.accepted:
        verdict = dcap_qvl.verify_with_root_ca(quote, collateral, root, now)
        assert verdict.status == scenario.expect.status
        assert verdict.advisory_ids == list(scenario.expect.advisories)
    else:
        with pytest.raises(ValueError) as refusal:
            dcap_qvl.verify_with_root_ca(quote, collateral, root, now)
        assert scenario.expect.reason in str(refusal.value)


@pytest.mark.parametrize("name", builtin_names())
def test_our_verifier_agrees(name: str) -> None:
    scenario = builtin(name)
    verifier = Verifier(scenario.world.pki.root.der, accept_simulated=True)
    verdict = verifier.verify(scenario.quote(), scenario.collateral(), scenario.world.now)
    # The built-in policy asks for more than authenticity: an up-to-date TCB.
    assert verdict.authentic == scenario.expect.accepted
    assert verdict.accepted == (scenario.expect.status == "UpToDate")
    if verdict.authentic:
        assert verdict.status == scenario.expect.status
        assert verdict.advisories == list(scenario.expect.advisories)
    else:
        assert scenario.expect.reason in verdict.reason
        assert verdict.check not in ("", "verification")


def test_every_status_and_every_fault_has_a_scenario() -> None:
    scenarios = list(builtins())
    rated = {scenario.expect.status for scenario in scenarios}
    rated |= {str(scenario.world.platform.status) for scenario in scenarios}
    assert set(map(str, TcbStatus)) <= rated
    assert set(Fault) == set().union(*(scenario.world.faults for scenario in scenarios))


@pytest.mark.parametrize("fault", list(Fault))
def test_without_its_fault_the_world_is_sound(fault: Fault) -> None:
    # The fault alone is what fails: the same scenario without it is accepted.
    (scenario,) = (each for each in builtins() if each.world.faults == {fault})
    sound = replace(scenario, world=replace(scenario.world, faults=frozenset()))
    verifier = Verifier(sound.world.pki.root.der, accept_simulated=True)
    assert verifier.verify(sound.quote(), sound.collateral(), sound.world.now).accepted


def test_now_moves_the_collateral() -> None:
    scenario = parse_scenario(f"[scenario]\nnow = 2031-01-02T03:04:05+01:00\n\n{MINIMAL}", "later")
    assert scenario.world.now == dt.datetime(2031, 1, 2, 2, 4, 5, tzinfo=dt.UTC)
    verifier = Verifier(scenario.world.pki.root.der, accept_simulated=True)
    assert verifier.verify(scenario.quote(), scenario.collateral(), scenario.world.now).accepted
    late = scenario.world.now + dt.timedelta(days=40)
    assert not verifier.verify(scenario.quote(), scenario.collateral(), late).accepted


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[expect", "is not TOML"),
        ("[expct]\n", "did you mean 'expect'"),
        (MINIMAL + 'statsu = "x"\n', "did you mean 'status'"),
        (MINIMAL + '[platform]\nstatus = "OutofDate"\n', "did you mean 'OutOfDate'"),
        (MINIMAL + '[scenario]\nfaults = ["pck-revokd"]\n', "did you mean 'pck-revoked'"),
        (MINIMAL + "[scenario]\nnow = 2025-06-01T00:00:00\n", "with an offset"),
        (MINIMAL + '[quote]\nversion = 4\nbody = "1.5"\n', "5 has 1.0 or 1.5"),
        (MINIMAL + "[module]\nisvsvn = 255\n", "at most 254"),
        (MINIMAL + "[td]\nattributes = -1\n", "cannot be negative"),
        (MINIMAL + "[td]\nservice_td = 1\n", "must be bool"),
        ('[expect]\nverdict = "maybe"\n', "'accepted' or 'rejected'"),
        ('[expect]\nverdict = "accepted"\n', "status when accepted"),
        ('[expect]\nverdict = "rejected"\nstatus = "UpToDate"\n', "reason when rejected"),
        ("", "'accepted' or 'rejected'"),
    ],
)
def test_what_does_not_fit_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ScenarioError) as error:
        parse_scenario(text, "test")
    assert complaint in str(error.value)


def test_find_takes_names_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL)
    assert find(str(file)).name == "mine"
    assert find("pck-revoked").world.faults == {Fault.PCK_REVOKED}
    with pytest.raises(AttestationError, match="there is no scenario 'nothing'"):
        find("nothing")
    with pytest.raises(AttestationError, match="cannot read"):
        find(str(tmp_path / "missing.toml"))

"""A hypervisor that tries everything, and what it gets for it."""

from __future__ import annotations

from collections.abc import Iterator

from swtdx.lab.attack import Result
from swtdx.lab.attempt import Attempt
from swtdx.lab.catalogue import attacks, carry_out
from swtdx.scenes.model import Rows, Step


def attack(seed: bytes) -> Iterator[Step]:
    """Play the scene: a step for each attack, and a summary."""
    refused, limits, breaches = 0, 0, 0
    for each in attacks():
        result = carry_out(each, seed)
        yield step_of(result)
        refused += result.refused
        breaches += result.breach
        limits += not result.refused and not result.breach
    facts = [("refused", str(refused)), ("not refused", str(breaches))]
    if limits:
        facts.append(("outside the promises of TDX", str(limits)))
    yield Step(
        "The balance",
        "After each attack the victim looked at its registers and its memory, and all of DRAM was searched "
        "for its secret.",
        facts=tuple(facts),
        data={"refused": refused, "breaches": breaches, "limits": limits},
    )


def step_of(result: Result) -> Step:
    """An attack as a step."""
    each = result.attack
    verdict = "refused" if result.refused else "NOT REFUSED" if result.breach else "works, as on hardware"
    facts = [("verdict", verdict)]
    if result.harm:
        facts.append(("harm", result.harm))
    if each.limit:
        facts.append(("limit", each.limit))
    rows = tuple((attempt.what, _answer(attempt)) for attempt in result.attempts)
    return Step(
        f"{each.family}: {each.name}",
        f"The attacker wants to {each.goal}.",
        facts=tuple(facts),
        tables=(Rows("", ("attempt", "answer"), rows),),
        failed=result.breach,
        data=result.plain(),
    )


def _answer(attempt: Attempt) -> str:
    status = "" if attempt.status is None else f"{attempt.status:#018x} "
    return status + attempt.answer + ("" if attempt.refused else "  (!)")

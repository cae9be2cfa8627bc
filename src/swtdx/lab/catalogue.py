"""All attacks, and how one is carried out and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from swtdx.lab import keys, measurement, memory, pages, registers, vcpus
from swtdx.lab.attack import ATTACKS, Attack, Result
from swtdx.lab.bench import Bench

__all__ = ["attacks", "carry_out", "carry_out_all", "families"]
#: The families, in the order in which they are shown.
_MODULES: Final = (registers, memory, pages, keys, vcpus, measurement)


def attacks(family: str | None = None) -> list[Attack]:
    """Every attack, or those of one family."""
    order = families()
    found = [each for each in ATTACKS if family in (None, each.family)]
    return sorted(found, key=lambda each: order.index(each.family))


def families() -> list[str]:
    """The families, in order."""
    return [module.FAMILY for module in _MODULES]


def carry_out(
    attack: Attack, seed: bytes = b"swtdx", prepare: Callable[[Bench], object] | None = None
) -> Result:
    """Carry ``attack`` out on a machine of its own, then ask the victim.

    Args:
        prepare: is given the bench before the attack (to attach a tracer, say).
    """
    with Bench(seed) as bench:
        if prepare is not None:
            prepare(bench)
        attack.action(bench)
        harm = "" if bench.dead else bench.victim.report()
        if not harm:
            harm = _spilled(bench)
        return Result(attack, tuple(bench.attempts), harm)


def _spilled(bench: Bench) -> str:
    """Whether the secret lies anywhere in DRAM, or in a register of the hypervisor."""
    for cpu in bench.hypervisor.processors:
        if bench.victim.leaked(cpu.gpr):
            return f"a word of the victim's secret is in a register of processor {cpu.index}"
    bench.machine.memory.wbinvd()
    for word in bench.victim.secret:
        if bench.dram.find(word.to_bytes(8, "little")):
            return "a word of the victim's secret is in DRAM, in clear"
    return ""


def carry_out_all(seed: bytes = b"swtdx", family: str | None = None) -> Iterator[Result]:
    """Carry every attack out, one after the other, each on a machine of its own."""
    for each in attacks(family):
        yield carry_out(each, seed)

"""All attacks, and how one is carried out and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from swtdx.lab import keys, measurement, memory, pages, registers, vcpus
from swtdx.lab.attack import ATTACKS, Attack, Result
from swtdx.lab.bench import Bench, Impossible
from swtdx.machine.memory import Requestor

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

    Raises:
        Impossible: a step on the way failed, so that the attack could not be tried.
    """
    with Bench(seed) as bench:
        if prepare is not None:
            prepare(bench)
        try:
            attack.action(bench)
        except Impossible:
            # A step by the rules failed: no wonder if an attempt before it has got through.
            if all(attempt.refused for attempt in bench.attempts):
                raise
        harm = "" if bench.dead else bench.victim.report()
        if not harm:
            harm = _spilled(bench)
        return Result(attack, tuple(bench.attempts), harm)


def _spilled(bench: Bench) -> str:
    """Whether the secret has got into the hypervisor's registers or memory, or lies in DRAM in clear."""
    for cpu in bench.hypervisor.processors:
        if bench.victim.leaked(cpu.gpr):
            return f"a word of the victim's secret is in a register of processor {cpu.index}"
    memory = bench.machine.memory
    memory.wbinvd()
    words = [word.to_bytes(8, "little") for word in bench.victim.secret]
    for base, size in list(bench.dram.written()):
        seen = memory.read(base, size, Requestor.HOST)
        raw = bench.dram.read(base, size)
        for where, data in (("in the hypervisor's memory", seen), ("in DRAM, in clear", raw)):
            for word in words:
                if word in data:
                    return f"a word of the victim's secret is {where}, at {base + data.find(word):#x}"
    return ""


def carry_out_all(seed: bytes = b"swtdx", family: str | None = None) -> Iterator[Result]:
    """Carry every attack out, one after the other, each on a machine of its own."""
    for each in attacks(family):
        yield carry_out(each, seed)

"""Running cases: a machine at the right stage for each, used again where that is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from swtdx.proof.conformance.registry import Case, Defect, Mend
from swtdx.proof.conformance.stages import STAGES, bring_up
from swtdx.proof.conformance.world import Incompatible, World

_ORDER: Final = {name: place for place, name in enumerate(STAGES)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case that was run; ``wrong`` says what was not as it should be, None if all was."""

    case: Case
    wrong: str | None


class Bench:
    """Keeps one machine between reusable cases of the same stage.  ``close`` frees it."""

    def __init__(self) -> None:
        self._world: World | None = None
        self._stage: tuple[str, str] = ("", "")

    def run(self, case: Case) -> Outcome:
        """Run one case; never raises for what the module does."""
        try:
            if not case.reusable:
                # It may need a machine that no other case has touched.
                self.close()
            world = self._at(case.stage, case.leaf)
            world.run(case)
        except Exception as error:
            self.close()
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            return Outcome(case, f"{kind}{error}")
        if not case.reusable:
            self.close()
        return Outcome(case, None)

    def run_with(self, case: Case, defect: Defect, value: int, *, apply: bool = True) -> str | None:
        """Run a case with another defect on top, which must give ``value``; what is wrong.

        ``apply`` False: the defect's operands are made, but not used.

        Raises:
            Incompatible: that cannot be done.
        """
        try:
            if not case.reusable:
                self.close()
            self._at(case.stage, case.leaf).run_with(case, defect, value, apply=apply)
        except Incompatible:
            self.close()
            raise
        except Exception as error:
            self.close()
            return f"{type(error).__name__}: {error}"
        if not case.reusable:
            self.close()
        return None

    def run_mended(self, case: Case, mend: Mend, value: int) -> str | None:
        """Run a case, put its defect right, and have the next check answer ``value``; what is wrong.

        Raises:
            Incompatible: that cannot be done.
        """
        self.close()
        try:
            self._at(case.stage, case.leaf).run_mended(case, mend, value)
        except Incompatible:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self.close()
        return None

    def _at(self, stage: str, leaf: str) -> World:
        if self._world is None or self._stage != (stage, leaf):
            self.close()
            self._world = World()
            self._stage = stage, leaf
            bring_up(self._world, stage)
        return self._world

    def close(self) -> None:
        """Free the machine."""
        if self._world is not None:
            self._world.close()
            self._world = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_order(cases: Iterable[Case]) -> list[Case]:
    """The cases so that machines can be used again: by leaf and stage, those that spoil nothing first."""
    return sorted(cases, key=lambda case: (case.leaf, _ORDER[case.stage], not case.reusable, case.name))


def run_all(
    cases: Iterable[Case], progress: Callable[[int, int], None] = lambda _done, _all: None
) -> list[Outcome]:
    """Run cases; their outcomes in the order in which they ran."""
    ordered = in_order(cases)
    outcomes = []
    with Bench() as bench:
        for done, case in enumerate(ordered):
            progress(done, len(ordered))
            outcomes.append(bench.run(case))
        progress(len(ordered), len(ordered))
    return outcomes

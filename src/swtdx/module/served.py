"""Leaves as a module serves them: the declaration of each, and the handler that registered for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

from swtdx.arch import regs
from swtdx.arch.features import ModuleFeatures
from swtdx.arch.leaf import ONES, SEPT, ZERO, Leaf
from swtdx.arch.units import MASK64

Call = TypeVar("Call")
#: Gets the call, returns the completion status.
Handler = Callable[[Call], int]
#: Leaves that are no table's business: TDG.VP.VMCALL leaves the TD, the dispatcher does it itself.
_BY_DISPATCHER: Final = frozenset({"TDG.VP.VMCALL"})


class Served:
    """One leaf of a module: what its declaration says, as dispatcher and handler need it.

    ``op_states`` and ``sept_states`` are those of :class:`~swtdx.arch.leaf.Leaf`.  A handler that asks for
    what its leaf does not declare gets an AttributeError.
    """

    __slots__ = (
        "extended", "handler", "max_version", "name", "op_states", "outputs", "record", "sept_states",
        "sys_states",
    )  # fmt: skip

    op_states: int
    sept_states: int

    def __init__(self, record: Leaf, handler: Handler[Any]) -> None:
        self.record = record
        self.name = record.name
        self.handler = handler
        self.max_version = record.max_version
        self.sys_states = record.sys_states
        if record.op_states is not None:
            self.op_states = record.op_states
        if record.sept_states is not None:
            self.sept_states = record.sept_states
        #: By version: (register, value) that outputs get before the first check and after a failure.
        self.outputs = tuple(
            tuple(
                (regs.number(output.register), MASK64 if output.on_error == ONES else 0)
                for output in record.outputs
                if output.on_error in (ZERO, ONES, SEPT) and output.since <= version
            )
            for version in record.versions
        )
        #: Whether RCX, and RDX, carry extended error information.
        named = {output.register for output in record.outputs if output.on_error in (ZERO, SEPT)}
        self.extended = ("RCX" in named, "RDX" in named)


class Handlers(Generic[Call]):
    """The handlers of one side's leaves, each registered under the name of its leaf.

    ``leaves`` are the declared ones by name.  Used as a decorator: ``@host_leaf("TDH.MNG.CREATE")``.
    """

    def __init__(self, leaves: Mapping[str, Leaf]) -> None:
        self._leaves = leaves
        self._handlers: dict[str, Handler[Call]] = {}
        self._table = lru_cache(maxsize=None)(self._build)

    def __call__(self, name: str) -> Callable[[Handler[Call]], Handler[Call]]:
        """Register the handler of the leaf ``name``.

        Raises:
            ValueError: no such leaf is declared, or it has a handler already.
        """
        if name not in self._leaves:
            raise ValueError(f"{name} is not declared in the leaf tables of swtdx.arch")

        def register(handler: Handler[Call]) -> Handler[Call]:
            if name in self._handlers:
                raise ValueError(f"{name} has two handlers")
            self._handlers[name] = handler
            return handler

        return register

    @property
    def names(self) -> frozenset[str]:
        """Every leaf that has a handler."""
        return frozenset(self._handlers)

    def table(self, features: ModuleFeatures) -> Mapping[int, Served]:
        """The leaves of a module with these features, by number.

        Raises:
            RuntimeError: the module offers a leaf that has no handler.
        """
        return self._table(features)

    def _build(self, features: ModuleFeatures) -> Mapping[int, Served]:
        table = {}
        for name, leaf in self._leaves.items():
            if not features.serves(leaf) or name in _BY_DISPATCHER:
                continue
            handler = self._handlers.get(name)
            if handler is None:
                raise RuntimeError(f"{name} belongs to {features.name} ({leaf.support}) and has no handler")
            table[leaf.number] = Served(features.form(leaf), handler)
        return table

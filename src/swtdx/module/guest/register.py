"""Where handlers of guest-side leaves register themselves."""

from __future__ import annotations

from collections.abc import Callable

from swtdx.module.vcpu import Vcpu

#: Returns the completion status; output registers are set by the handler in ``vcpu.gpr``.
Handler = Callable[[Vcpu], int]

#: Handler by leaf number.
HANDLERS: dict[int, Handler] = {}
#: Name by leaf number, as the handlers state it.
NAMES: dict[int, str] = {}


def guest_leaf(number: int, name: str) -> Callable[[Handler], Handler]:
    """Register the handler of guest leaf ``number``; ``name`` is checked against the leaf table."""

    def register(handler: Handler) -> Handler:
        if number in HANDLERS:
            raise ValueError(f"guest leaf {number} ({name}) has two handlers")
        HANDLERS[number] = handler
        NAMES[number] = name
        return handler

    return register

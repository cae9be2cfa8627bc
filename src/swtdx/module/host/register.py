"""Where handlers of host-side leaves register themselves."""

from __future__ import annotations

from collections.abc import Callable

from swtdx.module.call import HostCall

Handler = Callable[[HostCall], int]

#: Handler by leaf number.
HANDLERS: dict[int, Handler] = {}


def host_leaf(number: int, name: str) -> Callable[[Handler], Handler]:
    """Register the handler of host leaf ``number``; ``name`` is checked against the leaf table."""

    def register(handler: Handler) -> Handler:
        if number in HANDLERS:
            raise ValueError(f"leaf {number} ({name}) has two handlers")
        HANDLERS[number] = handler
        NAMES[number] = name
        return handler

    return register


#: Name by leaf number, as the handlers state it.
NAMES: dict[int, str] = {}

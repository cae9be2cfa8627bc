"""What the leaf tables of the ABI say, in the shape that handlers need it."""

from __future__ import annotations

from swtdx.arch.leaves import HOST_LEAVES


def op_states(leaf: int) -> int:
    """The operation states in which host leaf ``leaf`` is allowed: bit n for OpState n.

    Raises:
        KeyError: the leaf does not exist, or does not check the operation state.
    """
    allowed = HOST_LEAVES[leaf].op_states
    if allowed is None:
        raise KeyError(f"{HOST_LEAVES[leaf].name} does not check the operation state")
    return allowed


def sept_states(leaf: int) -> int:
    """The Secure EPT entry states that host leaf ``leaf`` works on: bit n for state index n.

    Raises:
        KeyError: the leaf does not exist, or does not check an entry's state.
    """
    allowed = HOST_LEAVES[leaf].sept_states
    if allowed is None:
        raise KeyError(f"{HOST_LEAVES[leaf].name} does not check Secure EPT entries")
    return allowed

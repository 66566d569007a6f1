"""The states of a command, and which may follow which."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = ["TERMINAL_STATES", "TRANSITIONS", "CommandState", "can_transition_to", "is_terminal"]


class CommandState(StrEnum):
    """Where a command stands."""

    PENDING_UPLOAD = "PENDING_UPLOAD"
    """Created; its parameters are still being uploaded."""
    PENDING = "PENDING"
    """Waiting for its deployment to lease it, or to be pushed."""
    DISPATCHED = "DISPATCHED"
    """With its deployment."""
    SUCCEEDED = "SUCCEEDED"
    """Done: its response was a success."""
    FAILED = "FAILED"
    """Done: its response was an error, or it was given up."""
    EXPIRED = "EXPIRED"
    """Done: its deadline passed first."""


_S = CommandState

TRANSITIONS: Final[Mapping[CommandState, frozenset[CommandState]]] = MappingProxyType(
    {
        _S.PENDING_UPLOAD: frozenset({_S.PENDING, _S.FAILED, _S.EXPIRED}),
        _S.PENDING: frozenset({_S.DISPATCHED, _S.FAILED, _S.EXPIRED}),
        # To PENDING: its lease was released, or ran out.
        _S.DISPATCHED: frozenset({_S.PENDING, _S.SUCCEEDED, _S.FAILED, _S.EXPIRED}),
        _S.SUCCEEDED: frozenset(),
        _S.FAILED: frozenset(),
        _S.EXPIRED: frozenset(),
    }
)
"""From each state, the other states that may follow."""

TERMINAL_STATES: Final = frozenset(state for state, following in TRANSITIONS.items() if not following)


def is_terminal(state: CommandState) -> bool:
    """Tell whether a state is final."""
    return state in TERMINAL_STATES


def can_transition_to(state: CommandState, to: CommandState) -> bool:
    """Tell whether a command in one state may be moved to another; to the same state it always may."""
    return state == to or to in TRANSITIONS[state]

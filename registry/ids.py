"""Ids of commands: `cmd_` and 28 of [0-9a-z], ordered by the time they were made.

The 28 characters are one number in base 36: 48 bits of milliseconds since 1970 (up to the year 10889) in the high
bits, 96 random bits below. 36**28 > 2**144, so every such number fits. Two ids made in one millisecond collide with
probability 2**-96; the log's primary key would refuse the second.
"""

import secrets
import time
from typing import Final

__all__ = ["new_command_id"]

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = [high + low for high in _DIGITS for low in _DIGITS]
_LENGTH: Final = 28
_RANDOM_BITS: Final = 96


def new_command_id() -> str:
    """Make an id that no other command has, and that sorts after those made in earlier milliseconds."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    pairs = []
    for _ in range(_LENGTH // 2):
        number, pair = divmod(number, 36 * 36)
        pairs.append(_PAIRS[pair])
    return "cmd_" + "".join(reversed(pairs))

"""Values that a registry must accept, the nastiest first in line."""

from datetime import UTC, datetime
from typing import Final

from hypothesis import strategies as st

from registry.lifecycle import TERMINAL_STATES, CommandState

__all__ = ["HOSTILE", "instants", "json_text", "json_values", "names", "sizes", "states", "terminal_states"]

# What breaks careless code: quotes, LIKE and SQL metacharacters, JSON escapes, right-to-left and combining characters,
# characters beyond the basic plane, noncharacters.
HOSTILE: Final = [
    "'",
    '"',
    "\\",
    "%",
    "_",
    "--",
    ";",
    "$$",
    "$1",
    "{}",
    "%s",
    "\u202e",
    "e\u0301",
    "😀",
    "\uffff",
    "\U0010ffff",
    " ",
]

names = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=255),
    st.sampled_from(["x" * 255, "é" * 255, "sync-data", "postgres/health", "NULL", "' OR 1=1 --", "../../etc"]),
)
sizes = st.one_of(
    st.sampled_from([0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)
)
instants = st.one_of(
    st.sampled_from(
        [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
    ),
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.timezones()).map(lambda at: at.astimezone(UTC)),
)
states = st.sampled_from(CommandState)
terminal_states = st.sampled_from(sorted(TERMINAL_STATES))

# Text of any kind but lone surrogates, NUL and other control characters included.
json_text = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from([*HOSTILE, "\x00"])
)
_json_leaves = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, -0.0, 1.0, 1e21, 5e-324, 1.7976931348623157e308, 2**53 + 1, -(2**63), 2**64 - 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    json_text,
)
json_values = st.recursive(
    _json_leaves,
    lambda inner: st.one_of(
        st.lists(st.one_of(st.none(), inner), max_size=4),
        st.dictionaries(json_text, st.one_of(st.none(), inner), max_size=4),
    ),
    max_leaves=12,
)
"""Any JSON but null, which as an error means that there is none."""

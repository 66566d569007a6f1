"""What somebody else wrote, made harmless for a terminal: nothing in it moves the cursor, colours or turns text round.

What is accepted as a name or an error may hold any character but a few; all of it is kept, and shown as written. On a
terminal, though, control characters begin its commands (U+009B as much as ESC), and those that turn the direction of
text round make one name look like another ("Trojan Source", CVE-2021-42574). They are shown by their escapes.
"""

import re
from typing import Final

__all__ = ["visible", "visible_json"]

_LINE_FEEDS: Final = "\n\t"

# C0 and C1 controls; Arabic letter mark, left-to-right and right-to-left marks; line and paragraph separators,
# embeddings and overrides; isolates; tags, which nobody sees; lone surrogates.
_ACTING: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Show by its escape whatever would act on a terminal, but for line feeds and tabs."""
    return text if text.isascii() and text.isprintable() else _ACTING.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    return character if character in _LINE_FEEDS else repr(character)[1:-1]


def visible_json(text: bytes) -> bytes:
    """Write the same JSON (in UTF-8) with escapes for whatever would act on a terminal."""
    return _ACTING.sub(_json_escape, text.decode()).encode()


def _json_escape(found: re.Match[str]) -> str:
    character = found[0]
    if character in _LINE_FEEDS:  # between values: within them they are escaped already
        return character
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))

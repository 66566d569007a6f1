"""A drawing of the calls about one command: a lane for each client, time to the right.

Time is drawn by its order and not to scale: from one instant at which a call began or ended to the next it is always as
far. That shows what came before what, which is all that counts.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from registry.testing.contradictions import Contradiction, answer_text, arguments_text
from registry.testing.recording import Operation

__all__ = ["as_svg", "as_text"]

_MOST: Final = 40  # operations that are drawn: what cannot be, and what is nearest to it
_COLUMNS: Final = 120


@dataclass(frozen=True, slots=True)
class _Bar:
    """An operation as it is drawn: from one instant to another (their numbers), in a row of its client's lane."""

    number: int
    operation: Operation
    begin: int
    end: int | None
    told: bool

    @property
    def label(self) -> str:
        operation = self.operation
        answer = "?" if operation.end is None else answer_text(operation.answer)
        return _printable(f"{operation.call}({arguments_text(operation)}) → {answer}")


@dataclass(frozen=True, slots=True)
class _Drawing:
    bars: tuple[_Bar, ...]
    instants: int
    left_out: int
    edges: tuple[tuple[_Bar, _Bar], ...]
    places: Mapping[str, str]
    title: str

    def place(self, bar: _Bar) -> str:
        return _printable(self.places.get(bar.operation.request_id, ""))


def _drawing(operations: Sequence[Operation], contradiction: Contradiction | None) -> _Drawing:
    told = {operation.request_id for operation in contradiction.operations} if contradiction else set()
    drawn = _nearest(operations, told)
    number = {instant: index for index, instant in enumerate(sorted(_instants(drawn)))}
    bars = tuple(
        _Bar(
            index,
            operation,
            number[operation.start],
            None if operation.end is None else number[operation.end],
            operation.request_id in told,
        )
        for index, operation in enumerate(drawn, 1)
    )
    return _Drawing(
        bars,
        len(number),
        len(operations) - len(drawn),
        tuple(_edges([bar for bar in bars if bar.told])),
        contradiction.places if contradiction else {},
        _printable(str(contradiction)) if contradiction else "",
    )


def _nearest(operations: Sequence[Operation], told: set[str]) -> list[Operation]:
    """Choose what is drawn, in the order they began in."""
    ordered = sorted(operations, key=lambda operation: operation.start)
    if len(ordered) <= _MOST:
        return ordered
    marked = [index for index, operation in enumerate(ordered) if operation.request_id in told] or [len(ordered) - 1]
    by_distance = sorted(range(len(ordered)), key=lambda index: min(abs(index - each) for each in marked[:_MOST]))
    return [ordered[index] for index in sorted(by_distance[:_MOST])]


def _instants(operations: Iterable[Operation]) -> set[int]:
    return {at for operation in operations for at in (operation.start, operation.end) if at is not None}


def _edges(bars: Sequence[_Bar]) -> Iterator[tuple[_Bar, _Bar]]:
    """Give which must come before which, without what follows from the others."""
    for later in bars:
        earlier = [bar for bar in bars if _before(bar, later)]
        for bar in earlier:
            if not any(_before(bar, between) for between in earlier):
                yield bar, later


def _before(earlier: _Bar, later: _Bar) -> bool:
    return earlier.end is not None and earlier.end < later.begin


def _lanes(bars: Sequence[_Bar], width: Mapping[int, tuple[float, float]]) -> dict[str, list[list[_Bar]]]:
    """Give each client rows of bars that do not overlap. `width`: from where to where each bar takes room."""
    lanes: dict[str, list[list[_Bar]]] = {}
    for bar in bars:
        rows = lanes.setdefault(_printable(bar.operation.client), [])
        fitting = (row for row in rows if all(_apart(width[bar.number], width[other.number]) for other in row))
        row = next(fitting, None)
        if row is None:
            rows.append([bar])
        else:
            row.append(bar)
    return dict(sorted(lanes.items()))


def _apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[1] < other[0] or other[1] < one[0]


def _printable(text: str) -> str:
    """Write what no terminal and no XML would show as its code."""
    return "".join(character if character.isprintable() else f"\\u{{{ord(character):x}}}" for character in text)


# As text.


def as_text(operations: Sequence[Operation], contradiction: Contradiction | None = None) -> str:
    """Draw operations for a terminal of 120 columns; those that the contradiction concerns are marked.

    A bar that ends in > is of a call whose end nobody was told. At most 40 operations are drawn.
    """
    drawing = _drawing(operations, contradiction)
    lines: list[str] = []
    if drawing.title:
        lines += [*_wrapped(drawing.title), ""]
    lines += [*_text_lanes(drawing), "", *_legend(drawing), *_text_edges(drawing)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


def _text_lanes(drawing: _Drawing) -> Iterator[str]:
    margin = min(20, max((len(_printable(bar.operation.client)) for bar in drawing.bars), default=0))
    columns = _COLUMNS - margin - 2
    step = min(8, max(1, (columns - 6) // max(1, drawing.instants - 1)))
    extent = {bar.number: _extent(bar, step, columns) for bar in drawing.bars}
    for client, rows in _lanes(drawing.bars, extent).items():
        for number, row in enumerate(rows):
            cells = [" "] * columns
            for bar in row:
                begin, end = extent[bar.number]
                cells[begin : end + 1] = _text_bar(bar, end + 1 - begin)
            name = _shortened(client, margin) if number == 0 else ""
            yield f"{name:<{margin}}  {''.join(cells)}"


def _extent(bar: _Bar, step: int, columns: int) -> tuple[int, int]:
    least = len(str(bar.number)) + 2
    begin = min(bar.begin * step, columns - least)
    end = columns - 1 if bar.end is None else bar.end * step - 1
    return begin, min(columns - 1, max(end, begin + least - 1))


def _text_bar(bar: _Bar, width: int) -> list[str]:
    line = "═" if bar.told else "─"
    inside = f"{bar.number}".ljust(width - 2, line)
    return [*("╞" if bar.told else "├"), *inside, *(">" if bar.end is None else "╡" if bar.told else "┤")]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _legend(drawing: _Drawing) -> Iterator[str]:
    for bar in drawing.bars:
        place = drawing.place(bar)
        client = _shortened(_printable(bar.operation.client), 20)
        line = f"{'*' if bar.told else ' '}{bar.number:>3}  {client}: {bar.label}"
        line += f"  [{place}]" if place else ""
        yield from _wrapped(line, " " * 6)
    if drawing.left_out:
        yield f"      ({drawing.left_out} more operations are not shown)"


def _text_edges(drawing: _Drawing) -> Iterator[str]:
    if drawing.edges:
        yield ""
    for earlier, later in drawing.edges:
        first, second = _named(drawing, earlier), _named(drawing, later)
        yield from _wrapped(f"      {first} must come before {second}: it had ended before that began.", " " * 6)


def _named(drawing: _Drawing, bar: _Bar) -> str:
    place = drawing.place(bar)
    return f"{bar.number} ({place})" if place else f"{bar.number}"


# As SVG.

_WIDTH: Final = 1000  # pixels, of all instants, if the steps from one to the next are not too short or too long then
_STEPS: Final = (34, 80)
_ROW: Final = 50
_TOP: Final = 18
_LETTER: Final = 6.7  # pixels, about, of a character of the font
_TITLE_WIDTH: Final = 130  # characters
_STYLE: Final = (
    "text{font:11px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1f2933;"
    "paint-order:stroke;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round}"
    ".title{font-size:13px;font-weight:bold}.client{font-size:12px;font-weight:bold}.place{fill:#52606d}"
    ".bar{fill:#9fb3c8;stroke:#486581}.told{fill:#f7c6c7;stroke:#ba2525;stroke-width:2}.hot{fill:#ba2525}"
    ".lane{stroke:#d9e2ec}.edge{stroke:#ba2525;stroke-width:1.5;stroke-dasharray:5 3;fill:none}"
)


def as_svg(operations: Sequence[Operation], contradiction: Contradiction | None = None) -> str:
    """Draw operations as an SVG image; those that the contradiction concerns are red, and so is what came before what.

    A bar that is open to the right is of a call whose end nobody was told. At most 40 operations are drawn.
    """
    return _Svg(_drawing(operations, contradiction)).text()


class _Svg:
    def __init__(self, drawing: _Drawing) -> None:
        self._drawing = drawing
        self._left = 24 + _LETTER * 1.2 * max((len(self._client(bar)) for bar in drawing.bars), default=0)
        self._step = min(max(_WIDTH / max(1, drawing.instants), _STEPS[0]), _STEPS[1])
        self._right = self._left + self._step * drawing.instants
        self._title = textwrap.wrap(drawing.title, _TITLE_WIDTH, break_on_hyphens=False)
        room = {bar.number: (self._x(bar.begin), self._room_end(bar)) for bar in drawing.bars}
        self._lanes = _lanes(drawing.bars, room)
        self._width = max(
            [self._right + 40, 24 + len(self._title[:1]) * _TITLE_WIDTH * 8, *(end for _, end in room.values())]
        )
        self._tops = dict(self._rows())

    def text(self) -> str:
        rows = sum(map(len, self._lanes.values()))
        height = self._begin + rows * _ROW + 40
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width:.0f}" height="{height}" '
            f'viewBox="0 0 {self._width:.0f} {height}">',
            f"<style>{_STYLE}</style>",
            '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
            '<path d="M0,0 L9,4 L0,8 z" class="hot"/></marker></defs>',
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *(_svg_text(12, 24 + 18 * number, line, "title") for number, line in enumerate(self._title)),
            *self._clients(),
            *(self._edge(*edge) for edge in self._drawing.edges),
            *(part for bar in self._drawing.bars for part in self._bar(bar)),
            _svg_text(12, height - 12, self._foot(), "place"),
            "</svg>",
        ]
        return "\n".join(parts) + "\n"

    @property
    def _begin(self) -> int:
        return 20 + 18 * len(self._title) + 12

    @staticmethod
    def _client(bar: _Bar) -> str:
        return _shortened(_printable(bar.operation.client), 24)

    def _label(self, bar: _Bar) -> str:
        return _shortened(f"{bar.number} {bar.label}", 90)

    def _x(self, instant: int) -> float:
        return self._left + instant * self._step

    def _bar_end(self, bar: _Bar) -> float:
        return self._right if bar.end is None else max(self._x(bar.end), self._x(bar.begin) + 6)

    def _room_end(self, bar: _Bar) -> float:
        letters = max(len(self._label(bar)), len(self._drawing.place(bar)))
        return max(self._bar_end(bar), self._x(bar.begin) + letters * _LETTER) + 12

    def _rows(self) -> Iterator[tuple[int, float]]:
        top = float(self._begin)
        for rows in self._lanes.values():
            for row in rows:
                yield from ((bar.number, top) for bar in row)
                top += _ROW

    def _clients(self) -> Iterator[str]:
        top = self._begin
        for client, rows in self._lanes.items():
            yield f'<path class="lane" d="M12,{top - 6} H{self._width - 12:.0f}"/>'
            yield _svg_text(12, top + _TOP + 10, _shortened(client, 24), "client")
            top += len(rows) * _ROW

    def _bar(self, bar: _Bar) -> Iterator[str]:
        x, end, top = self._x(bar.begin), self._bar_end(bar), self._tops[bar.number]
        kind = "told" if bar.told else "bar"
        shape = f"M{end:.1f},{top + _TOP} H{x:.1f} v11 H{end:.1f}" + ("" if bar.end is None else " z")
        whole = _printable(f"client {bar.operation.client}: {bar.label} {self._drawing.place(bar)}")
        yield f"<g><title>{escape(whole)}</title>"
        yield f'<path class="{kind}" d="{shape}"/>'
        yield _svg_text(x, top + _TOP - 5, self._label(bar), "hot" if bar.told else "")
        yield _svg_text(x, top + _TOP + 22, self._drawing.place(bar), "place")
        yield "</g>"

    def _edge(self, earlier: _Bar, later: _Bar) -> str:
        from_x, from_y = self._bar_end(earlier), self._tops[earlier.number] + _TOP + 5.5
        to_x, to_y = self._x(later.begin), self._tops[later.number] + _TOP + 5.5
        bend = max(10.0, (to_x - from_x) / 2)
        curve = f"C{from_x + bend:.1f},{from_y} {to_x - bend:.1f},{to_y} {to_x:.1f},{to_y}"
        return f'<path class="edge" marker-end="url(#head)" d="M{from_x:.1f},{from_y} {curve}"/>'

    def _foot(self) -> str:
        parts = ["Time goes to the right, by its order and not to scale."]
        if self._drawing.edges:
            parts.append("An arrow: this had ended before that began, and so must come before it.")
        if self._drawing.left_out:
            parts.append(f"{self._drawing.left_out} more operations are not shown.")
        return " ".join(parts)


def _svg_text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class={quoteattr(kind)}>{escape(text)}</text>' if text else ""

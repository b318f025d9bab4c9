"""The disk as a bar: of letters for a terminal, or as an SVG drawing. Pure text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape

from imgtool.chain.layers import Layers, Part
from imgtool.image.names import printable

NOBODY, ZEROS = ".", "-"

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FILLS = ("#2f9e44", "#1971c2", "#9c36b5", "#0c8599", "#e8590c", "#c2255c")
_WIDTH, _ROW, _LEFT = 800, 28, 10


def letters(count: int) -> list[str]:
    """A letter for each layer, the topmost first; of a deep chain the last ones share theirs."""
    return [_LETTERS[min(depth, len(_LETTERS) - 1)] for depth in range(count)]


def bar(found: Layers, columns: int) -> str:
    """The disk from its beginning to its end in so many characters: the letter of the layer that supplies most data
    there, however little it is; else `-` where a layer says that there are zeros; else `.`, nobody."""
    marks = letters(len(found.layers))
    cells = []
    for cell in _cells(found, columns):
        data = {layer: count for (layer, zero), count in cell.items() if not zero and layer is not None}
        if data:
            cells.append(marks[max(data, key=lambda layer: data[layer])])
        else:
            cells.append(ZEROS if any(layer is not None for layer, _ in cell) else NOBODY)
    return "".join(cells)


def _cells(found: Layers, columns: int) -> Iterator[dict[tuple[int | None, bool], int]]:
    """For each column what lies in it: (layer, zero) → bytes."""
    size = max(found.virtual_size, 1)
    edges = [size * column // columns for column in range(columns + 1)]
    cells: list[dict[tuple[int | None, bool], int]] = [{} for _ in range(columns)]
    for part in found.parts:
        column = min(part.start * columns // size, columns - 1)
        while column < columns and edges[column] < part.end:
            count = min(part.end, edges[column + 1]) - max(part.start, edges[column])
            if count > 0:
                key = (part.layer, part.zero)
                cells[column][key] = cells[column].get(key, 0) + count
            column += 1
    yield from cells


def to_svg(found: Layers) -> str:
    """A drawing: the disk as a guest sees it, and below it a row for each image with what it supplies."""
    rows = [("", None), *((_name(found, depth), depth) for depth in range(len(found.layers)))]
    height = _ROW * 2 * len(rows) + 2 * _LEFT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + 2 * _LEFT}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
    ]
    for number, (name, depth) in enumerate(rows):
        top = _LEFT + number * 2 * _ROW
        label = name or f"{printable(os.path.basename(found.path))}: {found.virtual_size} bytes"
        lines.append(f'  <text x="{_LEFT}" y="{top + 14}">{escape(label)}</text>')
        lines.append(f'  <rect x="{_LEFT}" y="{top + 20}" width="{_WIDTH}" height="{_ROW - 8}" fill="#f1f3f5"/>')
        for start, end, layer, zero in _runs(found, depth):
            fill = "#ced4da" if zero else _FILLS[layer % len(_FILLS)]
            place = f'x="{_LEFT + start}" y="{top + 20}" width="{end - start}" height="{_ROW - 8}"'
            lines.append(f'  <rect {place} fill="{fill}"/>')
    return "\n".join([*lines, "</svg>"])


def _name(found: Layers, depth: int) -> str:
    layer = found.layers[depth]
    return f"{printable(os.path.basename(layer.path))}: {layer.data} bytes"


def _runs(found: Layers, only: int | None) -> Iterator[tuple[int, int, int, bool]]:
    """(first pixel, the one behind the last, layer, zero) of what a layer supplies, or all of them; alike ones that
    touch are one, so that a drawing never has more than a few for each pixel."""
    last: tuple[int, int, int, bool] | None = None
    for part in found.parts:
        if part.layer is None or (only is not None and part.layer != only):
            continue
        start, end = _pixels(part, found.virtual_size)
        if last is not None and last[2:] == (part.layer, part.zero) and start <= last[1]:
            last = (last[0], max(last[1], end), part.layer, part.zero)
            continue
        if last is not None:
            yield last
        last = (start, end, part.layer, part.zero)
    if last is not None:
        yield last


def _pixels(part: Part, size: int) -> tuple[int, int]:
    start = part.start * _WIDTH // max(size, 1)
    return start, max(start + 1, -(-part.end * _WIDTH // max(size, 1)))

"""The graph as pictures: the lines of a tree for a terminal, a Graphviz digraph, a Mermaid flowchart. Pure text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imgtool.chain.findings import Finding
from imgtool.chain.graph import Graph, Image
from imgtool.image.names import printable

MAX_INDENT = 24
"""Levels a tree is indented; deeper ones are numbered instead, or a chain of 200 would be 600 columns wide."""


class Style(NamedTuple):
    branch: str
    last: str
    through: str
    blank: str


BOXES = Style("├─ ", "└─ ", "│  ", "   ")
ASCII = Style("|- ", "`- ", "|  ", "   ")


class Line(NamedTuple):
    """One line of a tree: `prefix` draws the branches, and exactly one of the others is what stands there."""

    prefix: str
    image: Image | None = None
    name: str = ""
    """How the image is called here, printable."""
    role: str = ""
    """`data-file` where the image stands beside its owner as its data file; `again` where it was drawn before."""
    finding: Finding | None = None
    more: int = 0
    """Children that the graph leaves out."""


class _Waiting(NamedTuple):
    image: Image
    directory: str
    indent: str
    mark: str
    depth: int
    role: str = ""


def tree(graph: Graph, *, style: Style = BOXES, start: str = "") -> Iterator[Line]:
    """The lines of the forest, a root first, its children below it. A name is relative to the directory `start` where
    image and parent lie below it, and below a parent elsewhere to the parent's own directory; else it is absolute."""
    by_path = {image.path: image for image in graph.images}
    data_files = _data_files(graph, by_path)
    drawn: set[str] = set()
    for root in graph.roots:
        waiting = [_Waiting(by_path[root], start, "", "", 0)]
        while waiting:
            here = waiting.pop()
            image = here.image
            again = image.path in drawn
            number = f"({here.depth}) " if here.depth > MAX_INDENT else ""
            role = here.role or ("again" if again else "")
            yield Line(here.indent + here.mark + number, image, relative(image.path, here.directory), role)
            if again and not here.role:
                continue
            drawn.add(image.path)
            indent = here.indent + {"": "", style.branch: style.through, style.last: style.blank}[here.mark]
            below = [] if here.role else [(by_path[child], "") for child in image.children if child in by_path]
            if not here.role:
                below[:0] = [(file, "data-file") for file in data_files.get(image.path, ())]
            hidden = image.other_children or 0
            beside = start if _lies_below(image.path, start) else os.path.dirname(image.path)
            side = indent + (style.through if below or hidden else style.blank)
            for found in image.findings:
                yield Line(side, finding=found)
            if hidden:
                yield Line(indent + (style.branch if below else style.last), more=hidden)
            for index, (child, child_role) in enumerate(reversed(below)):
                mark = style.last if index == 0 else style.branch
                deep = here.depth >= MAX_INDENT
                waiting.append(
                    _Waiting(
                        child,
                        beside,
                        indent[: MAX_INDENT * 3] if deep else indent,
                        mark,
                        here.depth + 1,
                        child_role,
                    )
                )


def relative(path: str, directory: str) -> str:
    """`path` for people: relative to `directory` where it lies there or below, printable."""
    if _lies_below(path, directory):
        path = path[len(directory.rstrip("/")) + 1 :]
    return printable(path)


def _lies_below(path: str, directory: str) -> bool:
    return bool(directory) and path.startswith(directory.rstrip("/") + "/")


def to_dot(graph: Graph) -> str:
    """A Graphviz digraph: an arrow from each image to what it stands on, dashed to a data file."""
    ids = {image.path: f"n{number}" for number, image in enumerate(graph.images)}
    lines = ["digraph chain {", "  rankdir=BT;", "  node [shape=box];"]
    for image in graph.images:
        attributes = [f"label={_dot(_label(image))}"]
        worst = severity(image)
        if worst in _COLORS:
            attributes.append(f'color="{_COLORS[worst]}"')
        if image.format is None:
            attributes.append('style="dashed"')
        lines.append(f"  {ids[image.path]} [{', '.join(attributes)}];")
    lines += [f"  {ids[child]} -> {ids[parent]};" for child, parent in _edges(graph, ids)]
    lines += [f'  {ids[owner]} -> {ids[file]} [style="dashed"];' for owner, file in _data_edges(graph, ids)]
    return "\n".join([*lines, "}"])


def to_mermaid(graph: Graph) -> str:
    """A Mermaid flowchart with the same arrows."""
    ids = {image.path: f"n{number}" for number, image in enumerate(graph.images)}
    lines = ["flowchart BT"]
    lines += [f'  {ids[image.path]}["{_mermaid(_label(image))}"]' for image in graph.images]
    lines += [f"  {ids[child]} --> {ids[parent]}" for child, parent in _edges(graph, ids)]
    lines += [f"  {ids[owner]} -.-> {ids[file]}" for owner, file in _data_edges(graph, ids)]
    for worst, color in _COLORS.items():
        marked = [ids[image.path] for image in graph.images if severity(image) == worst]
        if marked:
            lines += [f"  classDef {worst} stroke:{color}", f"  class {','.join(marked)} {worst}"]
    return "\n".join(lines)


_COLORS = {"error": "red", "warning": "orange"}


def severity(image: Image) -> str | None:
    """The gravest severity among the image's findings."""
    found = {one.severity for one in image.findings}
    return next((grade for grade in ("error", "warning", "info") if grade in found), None)


def _label(image: Image) -> list[str]:
    """The lines inside a node, printable."""
    lines = [printable(os.path.basename(image.path) if image.path.startswith("/") else image.path)]
    if image.format is not None:
        lines.append(image.format)
    lines += [found.code for found in image.findings if found.severity != "info"]
    return lines


def _edges(graph: Graph, ids: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for image in graph.images:
        if image.parent is not None and image.parent in ids:
            yield image.path, image.parent


def _data_edges(graph: Graph, ids: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for image in graph.images:
        for owner in image.data_file_of or ():
            if owner in ids:
                yield owner, image.path


def _data_files(graph: Graph, by_path: Mapping[str, Image]) -> dict[str, list[Image]]:
    found: dict[str, list[Image]] = {}
    for image in graph.images:
        for owner in image.data_file_of or ():
            if owner in by_path:
                found.setdefault(owner, []).append(image)
    return found


def _dot(lines: list[str]) -> str:
    """A double-quoted string of DOT. Backslashes are escapes in a label, and `&` begins an HTML entity."""
    escaped = [line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"') for line in lines]
    return '"' + "\\n".join(escaped) + '"'


_MERMAID_SPECIAL = re.compile(r"[^\w ./+:=()-]|_|(?<=[.)+-]) ")
"""The last: a space after what might begin an item of a Markdown list."""


def _mermaid(lines: list[str]) -> str:
    """Text inside a quoted node. What Markdown, HTML, comments (`%%`) or Mermaid's own escapes could take for theirs
    is written as a numbered entity."""
    return "<br/>".join(_MERMAID_SPECIAL.sub(lambda found: f"#{ord(found[0])};", line) for line in lines)

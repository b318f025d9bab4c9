"""What a store of images holds, in memory: the plain model that the property test compares real stores with.

A disk is a row of pieces of 64 KiB, each filled with one byte. An image has a piece of its own, or reads that of its
parent, or zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

PIECE = 64 << 10

Row = tuple[int, ...]


class Node:
    """One image."""

    def __init__(self, size: int, parent: str | None = None, *, format: str = "qcow2") -> None:
        self.size = size
        self.parent = parent
        self.format = format
        self.own: dict[int, int] = {}
        self.snapshots: dict[str, dict[int, int]] = {}

    def copy(self) -> Node:
        made = Node(self.size, self.parent, format=self.format)
        made.own = dict(self.own)
        made.snapshots = {name: dict(own) for name, own in self.snapshots.items()}
        return made


class Model:
    """Name → image. Operations change it as imgtool is to change the store, or say that they are refused."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def copy(self) -> Model:
        made = Model()
        made.nodes = {name: node.copy() for name, node in self.nodes.items()}
        return made

    def read(self, name: str) -> Row:
        return self._through(self.nodes[name], self.nodes[name].own)

    def contents(self) -> dict[str, Row]:
        return {name: self.read(name) for name in self.nodes}

    def _through(self, node: Node, own: dict[int, int]) -> Row:
        below: Row = () if node.parent is None else self.read(node.parent)
        padded = (*below, *([0] * node.size))
        return tuple(own.get(piece, padded[piece]) for piece in range(node.size))

    def children(self, name: str) -> list[str]:
        return [child for child, node in self.nodes.items() if node.parent == name]

    def line(self, name: str) -> Iterator[str]:
        """The image, its parent, and so on."""
        at: str | None = name
        while at is not None:
            yield at
            at = self.nodes[at].parent

    def put_on(self, name: str, parent: str | None) -> None:
        """On another parent, reading the same."""
        node = self.nodes[name]
        held = {snapshot: self._through(node, own) for snapshot, own in node.snapshots.items()}
        row = self.read(name)
        node.parent = parent
        node.own = self._filled(node, node.own, row)
        node.snapshots = {
            snapshot: self._filled(node, own, held[snapshot]) for snapshot, own in node.snapshots.items()
        }

    def _filled(self, node: Node, own: dict[int, int], row: Row) -> dict[int, int]:
        now = self._through(node, own)
        return {**own, **{piece: byte for piece, byte in enumerate(row) if now[piece] != byte}}

    def commit(self, name: str, *, keep: bool, preserve: bool) -> bool:
        """False where it is refused, as in what follows."""
        node = self.nodes[name]
        if node.parent is None or node.snapshots:
            return False
        siblings = [child for child in self.children(node.parent) if child != name]
        if siblings and not preserve:
            return False
        parent = self.nodes[node.parent]
        before = {sibling: self.nodes[sibling].copy() for sibling in siblings}
        rows = {sibling: self.read(sibling) for sibling in siblings}
        held = {
            sibling: {one: self._through(old, own) for one, own in old.snapshots.items()}
            for sibling, old in before.items()
        }
        row = self.read(name)
        parent.own.update({piece: byte for piece, byte in enumerate(row) if piece in node.own})
        if node.size > parent.size:
            parent.size = node.size
        if not keep:
            node.own = {}
        for sibling in siblings:
            one = self.nodes[sibling]
            one.own = self._filled(one, one.own, rows[sibling])
            one.snapshots = {
                snapshot: self._filled(one, own, held[sibling][snapshot]) for snapshot, own in one.snapshots.items()
            }
        return True

    def rebase(self, name: str, parent: str | None) -> bool:
        if self.nodes[name].format == "raw":
            return False
        if parent is not None and name in self.line(parent):
            return False
        self.put_on(name, parent)
        return True

    def shorten(self, name: str, *, delete: bool) -> bool:
        line = list(self.line(name))
        kept = [line[0], *(one for one in line[1:-1] if len(self.children(one)) > 1), *line[1:][-1:]]
        merged = [one for one in line if one not in kept]
        if not merged or (delete and any(self.nodes[one].snapshots for one in merged)):
            return False
        for above, below in pairwise(kept):
            if self.nodes[above].parent != below:
                self.put_on(above, below)
        if delete:
            self.remove(merged)
        return True

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            del self.nodes[name]

    def flatten(self, name: str) -> bool:
        if self.nodes[name].parent is None:
            return False
        self.put_on(name, None)
        return True

    def reset(self, name: str) -> bool:
        node = self.nodes[name]
        if node.parent is None or node.snapshots or self.children(name):
            return False
        node.own = {}
        return True

    def delete(self, name: str) -> bool:
        if self.nodes[name].parent is None or self.children(name):
            return False
        self.remove([name])
        return True

    def move(self, name: str, to: str) -> bool:
        if to in self.nodes:
            return False
        self.nodes[to] = self.nodes.pop(name)
        for node in self.nodes.values():
            if node.parent == name:
                node.parent = to
        return True

    def grow(self, name: str, size: int) -> bool:
        node = self.nodes[name]
        if self.children(name):
            return False
        if node.parent is not None:  # QEMU lets the new space read zeros, whatever the parent has there
            row = self.read(name)
            node.size = size
            now = self.read(name)
            node.own.update({piece: 0 for piece in range(len(row), size) if now[piece]})
        node.size = size
        return True

    def snapshot(self, name: str, snapshot: str) -> bool:
        node = self.nodes[name]
        if node.format == "raw" or snapshot in node.snapshots:
            return False
        node.snapshots[snapshot] = dict(node.own)
        return True

    def back_to(self, name: str, snapshot: str) -> bool:
        node = self.nodes[name]
        if snapshot not in node.snapshots or self.children(name):
            return False
        node.own = dict(node.snapshots[snapshot])
        return True

    def forget(self, name: str, snapshot: str) -> bool:
        return self.nodes[name].snapshots.pop(snapshot, None) is not None

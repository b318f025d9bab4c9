"""The graph of images: what each one is, which image it stands on, and which stand on it.

These are the shapes of `chain show --output json`; `imgtool.chain.scan` fills them. Everything holds strings, never
each other, so a graph of 100,000 images costs little and a cycle of backing files is no cycle of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from imgtool.chain.findings import Finding
from imgtool.image.snapshot_table import Snapshot

InUse = Literal["read", "write"]
BackingKind = Literal["file", "json", "protocol"]


class Backing(msgspec.Struct, frozen=True, gc=False, rename="kebab"):
    """What an image records of its backing file."""

    reference: str
    """The name as it stands in the image."""
    format: str | None
    """The backing format the image names, None when it names none."""
    kind: BackingKind
    """file: a path. json: a tree of block nodes. protocol: a server or device, by a URL or a driver's prefix."""
    path: str | None
    """Where the file is: absolute, None when the reference leads to no plain file on this host."""
    relative: bool | msgspec.UnsetType = msgspec.UNSET
    """There only when true: QEMU looks for it in its own current directory, and imgtool in the image's."""
    files: Sequence[str] | msgspec.UnsetType = msgspec.UNSET
    """There only for a tree of several files, or of one with options that change what is read of it: those files."""


class DataFile(msgspec.Struct, frozen=True, gc=False, rename="kebab"):
    """A qcow2's external data file, which holds the disk's bytes in its stead."""

    reference: str
    """The name as it stands in the image."""
    kind: BackingKind
    """As in Backing."""
    path: str | None
    """Where the file is: absolute, None when the reference leads to no plain file on this host."""


class Image(msgspec.Struct, kw_only=True, gc=False, rename="kebab"):
    """A node: an image that was found, or one that is referred to but could not be looked at. A node that is missing,
    unusable or remote has no format and no sizes, and says why in its findings."""

    path: str
    """Absolute; where the image is no plain file, the reference that names it."""
    format: str | None = None
    """As QEMU calls it; None where the image could not be looked at."""
    virtual_size: int | None = None
    """Bytes of the disk; None where the image could not be looked at."""
    actual_size: int | None = None
    """Bytes allocated on the host."""
    parent: str | None = None
    """The path of the node this image stands on; None at a base."""
    children: Sequence[str] = ()
    """The paths of the nodes that stand on this one, by whatever reference, sorted; those of this graph only (see
    `other_children`)."""
    depth: int | None = 0
    """How many images lie beneath: 0 at a base, None on a cycle and above one."""
    backing: Backing | None = None
    """What the image itself records of its parent; None at a base."""
    data_file: DataFile | msgspec.UnsetType = msgspec.UNSET
    """There only when the image has one."""
    data_file_of: Sequence[str] | msgspec.UnsetType = msgspec.UNSET
    """The images whose external data file, or one of whose extents, this is; there only when it is one."""
    extents: Sequence[str] | msgspec.UnsetType = msgspec.UNSET
    """The files that hold the disk's bytes in its stead; there only when it is a VMDK that names some."""
    other_names: Sequence[str] | msgspec.UnsetType = msgspec.UNSET
    """Further names of the same file, by hard link or symlink; there only when there are any."""
    other_children: int | msgspec.UnsetType = msgspec.UNSET
    """How many more children were found that a graph narrowed to one image leaves out; there only when there are."""
    snapshots: Sequence[Snapshot] = ()
    """Its internal snapshots."""
    in_use: InUse | None = None
    """What the processes that hold QEMU's lock on it may do with it."""
    findings: Sequence[Finding] = ()
    """What is wrong with it, or worth knowing."""

    def add(self, found: Finding) -> None:
        """Notes a finding, once."""
        if found not in self.findings:
            self.findings = (*self.findings, found)

    def has(self, code: str) -> bool:
        """Whether a finding of this kind is among `findings`."""
        return any(found.code == code for found in self.findings)

    @property
    def all_names(self) -> tuple[str, ...]:
        """`path` and `other_names`."""
        return (self.path,) if self.other_names is msgspec.UNSET else (self.path, *self.other_names)


class Graph(msgspec.Struct, kw_only=True, gc=False, rename="kebab"):
    """The images that were found, sorted by path. Following `children` and `data_file` from `roots` reaches each of
    them.

    A root is an image without a parent, or, for a cycle, the first of its images by path.
    """

    images: list[Image]
    """Sorted by path."""
    roots: list[str]
    """The paths of the images to start from."""
    findings: list[Finding]
    """About the store as a whole; what concerns one image stands there."""

    def by_path(self) -> dict[str, Image]:
        """Every name of every image → the image."""
        names = {image.path: image for image in self.images}
        for image in self.images:
            if image.other_names is not msgspec.UNSET:
                for name in image.other_names:
                    names.setdefault(name, image)
        return names


def loops(parents: dict[str, str | None]) -> list[list[str]]:
    """The cycles in a map of node → parent, each in the order parents are followed, from its first path."""
    found: list[list[str]] = []
    done: set[str] = set()
    for start in parents:
        node = parents[start]
        if start in done or node is None or node in done:
            done.add(start)
            continue
        trail = {start: 0}
        while node is not None and node not in done and node not in trail:
            trail[node] = len(trail)
            node = parents.get(node)
        if node is not None and node in trail:
            ring = list(trail)[trail[node] :]
            first = ring.index(min(ring))
            found.append(ring[first:] + ring[:first])
        done.update(trail)
    return found


def depths(parents: dict[str, str | None]) -> dict[str, int | None]:
    """Node → how many lie beneath it; None for a node on a cycle or above one."""
    known: dict[str, int | None] = {}
    for start in parents:
        trail: dict[str, None] = {start: None}
        node = parents[start]
        while node is not None and node not in known and node not in trail:
            trail[node] = None
            node = parents.get(node)
        depth: int | None
        if node is None:
            depth = -1
        elif node in known:
            depth = known[node]
        else:
            depth = None
        for above in reversed(trail):
            depth = None if depth is None else depth + 1
            known[above] = depth
    return known


def descendants(children: Mapping[str, Sequence[str]], starts: Iterable[str]) -> Iterator[str]:
    """`starts` and everything above them, each once."""
    seen: set[str] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting.extend(children.get(node, ()))

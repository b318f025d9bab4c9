"""Scanning many images natively: directories, chains, and everything connected with an image."""

from __future__ import annotations

import os

from msgspec import Struct

from imgtool.chain.damage import tell_damage
from imgtool.chain.graph import Graph, Image
from imgtool.chain.link import link
from imgtool.chain.look import Notice, tidy
from imgtool.chain.store import Store
from imgtool.errors import ImageNotFoundError, ImageUnreadableError, UsageError
from imgtool.image.header import FORMATS
from imgtool.image.names import PathLike, Paths, paths_of, printable
from imgtool.image.policy import Policy


class Survey(Struct, frozen=True):
    graph: Graph
    asked: tuple[str, ...]
    """The nodes of the images asked for, in that order; directories asked for are none."""
    hidden: tuple[str, ...] = ()
    """What lies in the directories under names that begin with `HIDDEN`."""


def scan(paths: Paths, *, store: Paths = (), format: str | None = None) -> Graph:
    """The graph around `paths`.

    Of a directory: every image in it and below. Of an image: its chain down to the base, and what stands on the
    image, looked for in the directories its chain lies in (not below them), in those where imgtool itself made images
    refer to what was found before, and in those of `store` and below. Whatever a backing file or data file leads to
    is looked at wherever it lies. Symlinks to directories are not followed, and devices, FIFOs and sockets not
    opened, unless an image names a block device. A file without any format's magic number counts as a raw image when
    its name ends like one (`.img`, `.raw`, `.iso`, …) or an image refers to it.

    `format` is that of the images among `paths`, where it should not be probed from their bytes.

    Sizes are in bytes. Raises nothing for what is found: an image that is missing, damaged or cannot be read, be it
    one of `paths` or a backing file, is a node without format and sizes, whose findings say so (`missing`,
    `malformed`, `unreadable`, …). UsageError for a `format` that QEMU does not have.
    """
    return survey(paths, store=store, format=format, notice=tell_damage).graph


def check_format(format: str | None) -> None:
    """UsageError when QEMU has no format of that name."""
    if format is not None and format not in FORMATS:
        raise UsageError(f"{printable(format)!r} is not an image format", hint=f"one of {', '.join(FORMATS)}")


def survey(
    paths: Paths,
    *,
    store: Paths = (),
    format: str | None = None,
    notice: Notice | None = None,
    policy: Policy | None = None,
) -> Survey:
    """As `scan`, and which nodes were asked for. `notice` is called for each image while its file is open. With
    `policy` nothing is opened that it does not let an image refer to (`paths` and `store` are what the user named):
    for those who only want to see. Whoever changes images has to know of all that stand on them."""
    check_format(format)
    paths, store = paths_of(paths), paths_of(store)
    found = Store(notice, None if policy is None else policy.naming(*paths, *store))
    trees: list[str] = []
    asked: list[Image] = []
    for path in paths:
        name = absolute(path)
        if os.path.isdir(name):
            trees.append(name)
        else:
            asked.append(found.given(name, format=format))
    found.follow()
    for image in asked:
        for directory in found.directories_of_chain(image):
            found.directory(directory)
    # what was found in those directories so far matters only where it is connected with the images asked for
    narrow = not trees
    for directory in trees:
        found.tree(directory)
    for path in store:
        found.tree(absolute(path))
    if narrow:
        found.remembered(asked or None)
    found.symlinks()
    found.follow()
    graph = link(found.images, found.findings(), found.node_of, only=asked if narrow and asked else None)
    return Survey(graph, tuple(dict.fromkeys(image.path for image in asked)), tuple(found.hidden))


def check_asked(found: Survey) -> None:
    """ImageNotFoundError or ImageUnreadableError for an image asked for of which there is nothing to show: it cannot
    be looked at, and nothing refers to it."""
    by_path = found.graph.by_path()
    for path in found.asked:
        image = by_path[path]
        if image.children or image.data_file_of:
            continue
        for problem in image.findings:
            if problem.code == "missing":
                raise ImageNotFoundError(problem.message, path=path, hint="no image refers to it either")
            if problem.code in ("unreadable", "not-a-file"):
                raise ImageUnreadableError(problem.message, path=path)


def absolute(path: PathLike) -> str:
    """`path` made absolute, a `..` behind a symlink taken as the kernel takes it."""
    return tidy(os.path.join(os.getcwd(), os.fsdecode(path)))

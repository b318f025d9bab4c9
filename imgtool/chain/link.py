"""From scanned images to a graph: which stands on which, how deep, and what is wrong between them.

Pure: opens nothing. Every walk is a loop, never a recursion, so that chains may be of any length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from imgtool.chain.findings import Finding, finding
from imgtool.chain.graph import Graph, Image, depths, descendants, loops
from imgtool.image.names import printable

MAX_DEPTH = 200
"""Images in a chain that libvirt still follows, and that QEMU still opens in good time."""

UNUSABLE = ("missing", "unreadable", "not-a-file", "malformed", "reference-malformed")
"""Codes of a node that nothing can stand on."""

_WITH_MAGIC = frozenset(("qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "luks"))
"""Formats whose images are known by their first bytes; a vpc of fixed size is not."""

NodeOf = Callable[[str, str | None], Image]
"""(reference, path) → the node that a backing or data file reference leads to."""


def link(
    images: Iterable[Image], findings: Sequence[Finding], node_of: NodeOf, *, only: Iterable[Image] | None = None
) -> Graph:
    """The graph of `images`, which holds every node their references lead to; with `only`, those images, what they
    stand on and what depends on them."""
    nodes = sorted(images, key=lambda image: image.path)
    parents, children = _join(nodes, node_of)
    owners = _join_data_files(nodes, node_of)
    by_path = {image.path: image for image in nodes}
    rings = loops(parents)
    for ring in rings:
        _tell_ring(ring, by_path)
    for path, depth in depths(parents).items():
        if depth != 0:
            image = by_path[path]
            image.depth = depth
            if depth is not None and depth >= MAX_DEPTH:
                image.add(finding("too-deep", f"{depth + 1} images in the chain; {MAX_DEPTH} are safe"))
    _tell_broken(nodes, children, by_path, rings)
    if only is not None:
        kept = _narrow(only, parents, children, owners)
        nodes = [image for image in nodes if image.path in kept]
        for image in nodes:
            _leave_out_children(image, kept)
    return Graph(images=nodes, roots=_roots(nodes, rings, owners), findings=list(findings))


def _join(nodes: list[Image], node_of: NodeOf) -> tuple[dict[str, str | None], dict[str, list[str]]]:
    """Ties overlays to their backing files. Returns both directions: node → parent, node → children."""
    parents: dict[str, str | None] = {}
    children: dict[str, list[str]] = {}
    for image in nodes:
        path = image.path
        backing = image.backing
        if backing is None:
            parents[path] = None
            continue
        parent = node_of(backing.reference, backing.path)
        parents[path] = image.parent = parent.path
        siblings = children.get(parent.path)
        if siblings is None:
            siblings = children[parent.path] = []
            parent.children = siblings
        siblings.append(path)
        _judge(image, parent)
        for file in backing.files or ():
            below = node_of(file, file)
            below.children = others = children.setdefault(below.path, [])
            if others[-1:] != [path]:
                others.append(path)
    return parents, children


def _judge(image: Image, parent: Image) -> None:
    """What is wrong between an overlay and its backing file."""
    backing = image.backing
    assert backing is not None
    name = printable(parent.path)
    if parent.findings and parent.has("missing"):
        image.add(finding("missing-parent", f"the backing file {name} does not exist"))
    elif backing.path is None and not image.has("reference-malformed"):
        if backing.kind == "json":
            what = "a tree of block nodes" if len(backing.files or ()) != 1 else "named with options"
            image.add(finding("options-parent", f"the backing file is {what} and was not looked at"))
        else:
            image.add(finding("remote-parent", f"the backing file {name} was not looked at"))
    named, real = backing.format, parent.format
    if named is not None and real is not None and named != real:
        if named == "raw":
            image.add(
                finding(
                    "backing-format-doubtful",
                    f"the backing file {name} is named raw, but begins like a {real}: the name is wrong, or a guest "
                    f"wrote those bytes",
                )
            )
        elif named in _WITH_MAGIC:
            image.add(
                finding("backing-format-wrong", f"the backing file {name} is named {printable(named)}, but is {real}")
            )
    size, below = image.virtual_size, parent.virtual_size
    if size is not None and below is not None and size < below:
        image.add(finding("overlay-smaller", f"{size} bytes on a backing file of {below} bytes"))


def _join_data_files(nodes: list[Image], node_of: NodeOf) -> dict[str, list[str]]:
    """Ties qcow2 images to their external data files. Returns data file (or extent: the scan has told whose those
    are) → the images that it belongs to."""
    owners = {image.path: list(image.data_file_of) for image in nodes if image.data_file_of}
    held: dict[str, Image] = {}
    for image in nodes:
        if not image.data_file or image.data_file.path is None:
            continue
        file = node_of(image.data_file.reference, image.data_file.path)
        name = printable(file.path)
        owners.setdefault(file.path, []).append(image.path)
        held[file.path] = file
        file.data_file_of = owners[file.path]
        if file.has("missing"):
            image.add(finding("data-file-missing", f"the data file {name} does not exist"))
        elif file.format is None and any(file.has(code) for code in ("unreadable", "not-a-file")):
            image.add(finding("data-file-unusable", f"the data file {name} cannot be opened, or is no file"))
    for path, file in held.items():
        images = owners[path]
        if len(images) > 1:
            file.add(finding("data-file-shared", f"it holds the data of {_listed(images)}"))
        if file.children or file.backing is not None or path in images or file.format not in (None, "raw"):
            file.add(
                finding("data-file-misused", f"it holds the data of {_listed(images)}, and is an image of its own")
            )
    return owners


def _tell_ring(ring: list[str], by_path: dict[str, Image]) -> None:
    if len(ring) == 1:
        by_path[ring[0]].add(finding("self-reference", f"{printable(ring[0])} is its own backing file"))
        return
    shown = ring if len(ring) <= 8 else [*ring[:4], "…", *ring[-3:]]
    way = " → ".join(printable(path) for path in (*shown, ring[0]))
    for path in ring:
        by_path[path].add(finding("cycle", f"the backing files go in a circle: {way}"))


def _tell_broken(
    nodes: list[Image], children: dict[str, list[str]], by_path: dict[str, Image], rings: list[list[str]]
) -> None:
    """Marks every image that cannot be read because of something below it."""
    culprits = [image.path for image in nodes if image.findings and any(image.has(code) for code in UNUSABLE)]
    culprits += [path for ring in rings for path in ring]
    own = set(culprits)
    for culprit in culprits:
        reason = f"it stands on {printable(culprit)}, which cannot be used"
        for path in descendants(children, [culprit]):
            image = by_path[path]
            if path not in own and not image.has("missing-parent") and not image.has("broken-chain"):
                image.add(finding("broken-chain", reason))


def _narrow(
    only: Iterable[Image],
    parents: dict[str, str | None],
    children: dict[str, list[str]],
    owners: dict[str, list[str]],
) -> set[str]:
    """The paths of `only`, of what they stand on, and of what depends on them."""
    wanted = [image.path for image in only]
    dependents = children
    if owners:
        dependents = {path: [*children.get(path, ()), *owners.get(path, ())] for path in {*children, *owners}}
    kept = set(descendants(dependents, wanted))
    for start in list(kept):
        above = parents.get(start)
        while above is not None and above not in kept:
            kept.add(above)
            above = parents.get(above)
    if owners:
        kept.update(file for file, images in owners.items() if not kept.isdisjoint(images))
    return kept


def _leave_out_children(image: Image, kept: set[str]) -> None:
    mine = [child for child in image.children if child in kept]
    if len(mine) != len(image.children):
        image.other_children = len(image.children) - len(mine)
        image.children = mine
    if image.data_file_of:
        image.data_file_of = [owner for owner in image.data_file_of if owner in kept]


def _roots(nodes: list[Image], rings: list[list[str]], owners: dict[str, list[str]]) -> list[str]:
    here = {image.path for image in nodes}
    roots = [image.path for image in nodes if image.parent is None and image.path not in owners]
    roots += [ring[0] for ring in rings if ring[0] in here]
    if owners:
        by_path = {image.path: image for image in nodes}
        below: dict[str, Sequence[str]] = {
            path: [*image.children, *_data_file(image, owners)] for path, image in by_path.items()
        }
        reached = set(descendants(below, roots))
        for path in sorted(here - reached):
            if path not in reached:
                roots.append(path)
                reached.update(descendants(below, [path]))
    return sorted(roots)


def _data_file(image: Image, owners: dict[str, list[str]]) -> list[str]:
    """The nodes of the image's data file or extents, by the paths that the nodes go by."""
    if not image.data_file and not image.extents:
        return []
    return [file for file, images in owners.items() if image.path in images]


def _listed(paths: Sequence[str]) -> str:
    shown = [printable(path) for path in paths[:3]]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")

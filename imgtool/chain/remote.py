"""Parents that are reached by a protocol (nbd, https, ssh, …): asked of QEMU, where the policy lets the image have
them. Without being asked for nothing is connected to."""

from __future__ import annotations

import os

from imgtool.chain.findings import finding
from imgtool.chain.graph import Graph, Image
from imgtool.errors import ImgtoolError, PolicyError
from imgtool.image.names import printable
from imgtool.image.policy import Policy, approve
from imgtool.image.reference import parse
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.qemu_img import QemuImg


def look_at_remote(graph: Graph, qemu_img: QemuImg, policy: Policy) -> None:
    """Opens every parent of `graph` that a protocol leads to: its node gets its format and size, and the image that
    names it the finding `remote-unusable` when it cannot be opened. What the policy does not allow is left alone."""
    nodes = {image.path: image for image in graph.images}
    for image in graph.images:
        if not image.has("remote-parent") or image.parent is None:
            continue
        try:
            approve(image.path, policy, format=image.format, parents=False)
        except PolicyError:
            continue
        except ImgtoolError:
            continue  # what is wrong with the image itself is told elsewhere
        _look(image, nodes[image.parent], qemu_img)


def _look(image: Image, node: Image, qemu_img: QemuImg) -> None:
    assert image.backing is not None
    name = printable(node.path)
    source = opened(image)
    if source is None:
        return
    image.findings = tuple(found for found in image.findings if found.code != "remote-parent")
    if node.format is None:
        try:
            info = qemu_img.info(source)
        except ImgtoolError as error:
            image.add(finding("remote-unusable", f"the backing file {name} cannot be opened: {error.message}"))
            return
        node.format, node.virtual_size = info.format, info.virtual_size
    size, below = image.virtual_size, node.virtual_size
    if size is not None and below is not None and size < below:
        image.add(finding("overlay-smaller", f"{size} bytes on a backing file of {below} bytes"))


def opened(image: Image) -> ImageOpts | None:
    """The parent of `image` by itself, in the format that is named for it, without what it may stand on. None for a
    protocol that is not among these. QAPI: BlockdevOptionsNbd, BlockdevOptionsCurlHttps, BlockdevOptionsSsh."""
    assert image.backing is not None
    where = parse(os.fsencode(image.backing.reference), directory=os.path.dirname(image.path))
    place: dict[str, str | int | bool | None]
    if where.protocol == "nbd" and where.socket is not None:
        place = {"driver": "nbd", "server.type": "unix", "server.path": where.socket, "export": where.export}
    elif where.protocol == "nbd":
        place = {"driver": "nbd", "server.type": "inet", "server.host": where.host, "server.port": where.port}
        place["export"] = where.export
    elif where.protocol in ("http", "https", "ftp", "ftps"):
        place = {"driver": where.protocol, "url": where.text}
    elif where.protocol == "ssh":
        place = {"driver": "ssh", "server.host": where.host, "server.port": where.port or 22}
        place |= {"path": where.export, "user": where.user}
    else:
        return None
    options: dict[str, str | int | bool] = {"driver": image.backing.format or "raw"}
    options |= {f"file.{key}": value for key, value in place.items() if value not in (None, "")}
    if image.backing.format in ("qcow2", "qed", "qcow", "vmdk"):
        options["backing"] = ""
    return ImageOpts.of(options)

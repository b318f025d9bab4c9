"""Parents that are reached by a protocol (nbd, https, ssh, …) or named by QEMU's options: asked of QEMU, where the
policy allows the image to refer to them. Nothing is connected to unless asked for."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs, urlsplit

from imgtool.chain.findings import finding
from imgtool.chain.graph import Graph, Image
from imgtool.errors import ImgtoolError, PolicyError
from imgtool.image.names import printable
from imgtool.image.policy import Policy, approve
from imgtool.image.reference import parse
from imgtool.image.references.tree import flat_options
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.qemu_img import QemuImg

_UNSEEN = ("remote-parent", "options-parent")
_OVERLAYS = ("qcow2", "qed", "qcow", "vmdk")
_KEY = re.compile(r"[A-Za-z0-9_.-]+")


def look_at_remote(graph: Graph, qemu_img: QemuImg, policy: Policy) -> None:
    """Opens every parent of `graph` that a protocol or a tree of options leads to: its node gets its format and size,
    and the image that names it the finding `remote-unusable` when it cannot be opened. What the policy does not allow
    is left alone."""
    nodes = {image.path: image for image in graph.images}
    for image in graph.images:
        if image.parent is None or not any(image.has(code) for code in _UNSEEN):
            continue
        try:
            approve(image.path, policy, format=image.format, parents=False)
        except PolicyError:
            continue
        except ImgtoolError:
            continue  # what is wrong with the image itself is reported elsewhere
        _look(image, nodes[image.parent], qemu_img)


def _look(image: Image, node: Image, qemu_img: QemuImg) -> None:
    assert image.backing is not None
    name = printable(node.path)
    source = opened(image)
    if source is None:
        return
    image.findings = tuple(found for found in image.findings if found.code not in _UNSEEN)
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
    """The parent of `image` by itself, in the format that is named for it, without what it may stand on (unless its
    tree of options names that too). None for a protocol that is not among these. QAPI: BlockdevOptionsNbd,
    BlockdevOptionsCurlHttps, BlockdevOptionsSsh."""
    assert image.backing is not None
    where = parse(os.fsencode(image.backing.reference), directory=os.path.dirname(image.path))
    if where.kind == "json":
        return _tree(where.text, image.backing.format)
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
        place |= _host_key(where.text)
    else:
        return None
    options: dict[str, str | int | bool] = {"driver": image.backing.format or "raw"}
    options |= {f"file.{key}": value for key, value in place.items() if value not in (None, "")}
    if image.backing.format in _OVERLAYS:
        options["backing"] = ""
    return ImageOpts.of(options)


def _tree(text: str, format: str | None) -> ImageOpts | None:
    """The same of `json:{…}`. None for what an option string cannot say."""
    options: dict[str, str | int | bool] = {}
    for key, value in flat_options(text).items():
        if not _KEY.fullmatch(key) or (value is None and key != "backing"):
            return None
        options[key] = "" if value is None else value
    if format is not None:
        options["driver"] = format  # as QEMU has it: what the image says of it comes before the tree
    if options.get("driver") in _OVERLAYS and not any(key.partition(".")[0] == "backing" for key in options):
        options["backing"] = ""
    return ImageOpts.of(options)


def _host_key(url: str) -> dict[str, str | int | bool | None]:
    """How the server of an ssh URL is known. Source: QEMU's block/ssh.c (parse_uri, ssh_process_legacy_options)."""
    (check,) = parse_qs(urlsplit(url).query).get("host_key_check", ["yes"])[-1:]
    if check == "no":
        return {"host-key-check.mode": "none"}
    kind, colon, digits = check.partition(":")
    if colon:
        words = {"mode": "hash", "type": kind, "hash": digits}
        return {f"host-key-check.{key}": value for key, value in words.items()}
    return {"host-key-check.mode": "known_hosts"}

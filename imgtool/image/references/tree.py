"""Names that stand for a tree of block nodes: `json:{…}` in nested and dotted form, `blkdebug:` and `blkverify:`.

Source: block.c of QEMU (parse_json_protocol, bdrv_fill_options), QAPI's BlockdevOptions, qobject/json-lexer.c.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from imgtool.image.references.base import MAX_PORT, Reference, protocol_of, refuse
from imgtool.image.references.protocols import NBD_PORT, parse_protocol, parse_web

FORMATS = frozenset(
    ("bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
)
FILTERS = frozenset(
    (
        *("blkdebug", "blklogwrites", "blkreplay", "blkverify", "compress", "copy-before-write", "copy-on-read"),
        *("preallocate", "quorum", "replication", "snapshot-access", "throttle"),
    )
)
_WEB = ("http", "https", "ftp", "ftps", "tftp")
_FILES = ("file", "host_device", "host_cdrom")
_BLKIO = ("io_uring", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user", "virtio-blk-vhost-vdpa")

_CHILDREN = frozenset(
    ("file", "backing", "data-file", "image", "test", "raw", "log", "target", "children", "extents")
)
_SETTINGS = frozenset(
    ("server", "encrypt", "cache", "overlap-check", "limits", "inject-error", "set-state", "take-child-perms")
)
"""Options that have options of their own but are no nodes."""
_HARMLESS = frozenset(
    (
        *("driver", "filename", "file", "node-name", "read-only", "auto-read-only", "force-share", "locking"),
        *("aio", "cache", "discard", "detect-zeroes", "lazy-refcounts", "overlap-check", "discard-no-unref"),
        *("pass-discard-request", "pass-discard-snapshot", "pass-discard-other"),
        *("cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size", "cache-clean-interval"),
    )
)
"""Options that change nothing of what is read."""
_NAMES = {"x-image": "image", "x-raw": "raw"}
"""Where QEMU itself puts the file names it took out of `blkdebug:` and `blkverify:`; `json:` can reach them."""
_MAX_DEPTH = 64

_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'", re.DOTALL)

_Node = dict[str, Any]


def parse_any(text: str, *, depth: int = 0) -> Reference:
    """What a name means that QEMU joins to no directory: a plain one is of the current directory."""
    if depth > _MAX_DEPTH:
        refuse(text, "it nests too deeply")
    protocol = protocol_of(text)
    if protocol is None:
        return Reference(text=text, kind="file", protocol="file", path=text)
    if protocol == "json":
        return parse_json(text, depth=depth)
    if protocol == "blkdebug":
        return _parse_blkdebug(text, depth)
    if protocol == "blkverify":
        return _parse_blkverify(text, depth)
    return parse_protocol(text, protocol)


def _parse_blkdebug(text: str, depth: int) -> Reference:
    """`blkdebug:CONFIG:IMAGE`; the configuration is a file of the host too."""
    config, colon, image = text.removeprefix("blkdebug:").partition(":")
    if not colon or not image:
        refuse(text, "it has to be blkdebug:[CONFIG]:IMAGE")
    leaves = [_as_role(leaf, "image") for leaf in parse_any(image, depth=depth + 1).leaves]
    if config:
        leaves.append(_configuration(config))
    return msgspec.structs.replace(_joined(text, "protocol", "blkdebug", None, leaves), altered=True)


def _parse_blkverify(text: str, depth: int) -> Reference:
    """`blkverify:RAW:IMAGE`."""
    raw, colon, image = text.removeprefix("blkverify:").partition(":")
    if not colon or not raw or not image:
        refuse(text, "it has to be blkverify:RAW:IMAGE")
    leaves = [_as_role(leaf, "raw") for leaf in parse_any(raw, depth=depth + 1).leaves]
    leaves += [_as_role(leaf, "image") for leaf in parse_any(image, depth=depth + 1).leaves]
    return _joined(text, "protocol", "blkverify", None, leaves)


def parse_json(text: str, *, depth: int = 0) -> Reference:
    """The tree in `json:{…}`: single quotes are as good as double ones, and `{"file.driver": "nbd"}` as good as
    `{"file": {"driver": "nbd"}}`. Strings that name a node of a running QEMU lead nowhere and are refused."""
    node = _nested(text, _decode(text))
    leaves, format = _walk(text, node, depth)
    joined = _joined(text, "json", str(node.get("driver") or "") or None, format, leaves)
    return msgspec.structs.replace(joined, altered=_alters(node))


def _alters(node: _Node) -> bool:
    """Whether more is said than a format, or none, and a file below it."""
    inner = node.get("file")
    if not node.keys() <= _HARMLESS or node.get("driver") in FILTERS:
        return True
    if not isinstance(inner, dict):
        return False
    return inner.get("driver") in FORMATS - {"raw"} or _alters(inner)


def flat_options(text: str) -> dict[str, str | int | bool | None]:
    """The options in `json:{…}`, as QEMU flattens them: `file.server.host`. ImageFormatError when there are none."""
    flat: _Node = {}
    _flatten(text, "", _decode(text), flat, 0)
    return flat


def _decode(text: str) -> _Node:
    source = _STRING.sub(_double_quoted, text.removeprefix("json:"))
    try:
        source.encode()
        value = json.loads(source, object_pairs_hook=lambda pairs: _unique(text, pairs))
    except (ValueError, RecursionError):
        refuse(text, "it is not JSON")
    if not isinstance(value, dict):
        refuse(text, "its JSON is no object")
    return value


def _double_quoted(match: re.Match[str]) -> str:
    string = match[0]
    if string.startswith('"'):
        return string.replace("\\'", "'")
    return '"' + re.sub(r"\\'|\"", lambda found: "'" if found[0] == "\\'" else '\\"', string[1:-1]) + '"'


def _unique(text: str, pairs: list[tuple[str, Any]]) -> _Node:
    node = dict(pairs)
    if len(node) != len(pairs):
        refuse(text, "it says the same thing twice")
    return node


def _nested(text: str, node: _Node) -> _Node:
    """`node` with dotted keys unfolded and lists as objects of numbered keys: flattened first, as QEMU does it."""
    flat: _Node = {}
    _flatten(text, "", node, flat, 0)
    tree: _Node = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        if len(above) > _MAX_DEPTH:
            refuse(text, "it nests too deeply")
        place = tree
        for word in above:
            place = place.setdefault(word, {})
            if not isinstance(place, dict):
                refuse(text, f"{word} is a value and an object at once")
        if last in place:
            refuse(text, f"{last} is a value and an object at once")
        place[last] = value
    return tree


def _flatten(text: str, prefix: str, value: Any, flat: _Node, depth: int) -> None:
    if depth > _MAX_DEPTH:
        refuse(text, "it nests too deeply")
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    for name, item in value.items():
        key = prefix + name
        if isinstance(item, dict | list):
            _flatten(text, f"{key}.", item, flat, depth + 1)
        elif key in flat:
            refuse(text, "it says the same thing twice")
        else:
            flat[key] = item


def _walk(text: str, node: _Node, depth: int, *, below: bool = False) -> tuple[list[Reference], str | None]:
    """The leaves below a node, and the format it reads them in. `below` another node a name without a driver is a
    file's, whatever it looks like; at the top QEMU takes none."""
    if depth > _MAX_DEPTH:
        refuse(text, "it nests too deeply")
    driver = node.get("driver")
    if driver is not None and not isinstance(driver, str):
        refuse(text, "a driver is named by a string")
    if driver is None and below and "filename" in node:
        driver = "file"
    if driver is not None and driver not in FORMATS and driver not in FILTERS:
        return [_leaf(text, driver, node)], None
    leaves: list[Reference] = []
    format = driver if driver in FORMATS else None
    for key, value in node.items():
        found, inner = _child(text, key, value, depth)
        leaves += found
        if key in ("file", "image", "0") and format is None:
            format = inner
    if driver == "blkdebug" and isinstance(node.get("config"), str):
        leaves.append(_configuration(node["config"]))
    if not leaves:
        refuse(text, "it names no file and no server")
    return leaves, format


def _child(text: str, key: str, value: Any, depth: int) -> tuple[list[Reference], str | None]:
    if key in _NAMES:
        if not isinstance(value, str):
            refuse(text, f"{key} is a name")
        return [_as_role(leaf, _NAMES[key]) for leaf in parse_any(value, depth=depth + 1).leaves], None
    if isinstance(value, str) and key in _CHILDREN:
        refuse(text, f"{key} names a node of a running QEMU")
    if not isinstance(value, dict) or key in _SETTINGS:
        return [], None
    if key in ("children", "extents"):
        leaves: list[Reference] = []
        for index, item in value.items():
            if not isinstance(item, dict):
                refuse(text, f"{key}.{index} names a node of a running QEMU")
            leaves += [_as_role(leaf, f"{key}.{index}") for leaf in _walk(text, item, depth + 1, below=True)[0]]
        return leaves, None
    leaves, format = _walk(text, value, depth + 1, below=True)
    return [_as_role(leaf, key) if key != "file" else leaf for leaf in leaves], format


def _leaf(text: str, driver: str, node: _Node) -> Reference:
    """The file, device or server that a protocol driver's options name."""
    if driver in _FILES:
        path = _string(text, node, "filename")
        return Reference(text=path, kind="file" if driver == "file" else "protocol", protocol=driver, path=path)
    if driver == "vvfat":
        path = _string(text, node, "dir")
        return Reference(text=f"fat:{path}", kind="protocol", protocol=driver, path=path)
    if driver in _WEB:
        url = _string(text, node, "url")
        return msgspec.structs.replace(parse_web(url), protocol=driver)
    if driver in _BLKIO:
        path = _string(text, node, "path" if "path" in node else "filename")
        return Reference(text=path, kind="protocol", protocol=driver, path=path)
    return _server(text, driver, node)


def _server(text: str, driver: str, node: _Node) -> Reference:
    server = node.get("server", node)
    if isinstance(server, dict) and isinstance(server.get("0"), dict):
        server = server["0"]  # gluster and rbd have a list of them
    if not isinstance(server, dict):
        refuse(text, "its server is no object")
    socket = None
    if server.get("type") == "unix" or (driver == "nbd" and "host" not in server):
        socket = _string(text, server, "path" if "path" in server else "socket")
    host = None if socket else _optional(text, server, "host") or _optional(text, node, "portal")
    port = _port(text, server.get("port"))
    if driver == "nbd" and socket is None and host is None:
        refuse(text, "it names no NBD server")
    export = {
        "nbd": ("export",),
        "iscsi": ("target", "lun"),
        "iser": ("target", "lun"),
        "rbd": ("pool", "namespace", "image", "snapshot"),
        "gluster": ("volume", "path"),
        "nvme": ("device", "namespace"),
    }.get(driver, ("path",))
    words = [str(node[key]) for key in export if isinstance(node.get(key), str | int)]
    reference = Reference(
        text="",
        kind="protocol",
        protocol=driver,
        host=host,
        port=port if port is not None or driver != "nbd" or socket else NBD_PORT,
        socket=socket,
        export="/".join(words),
        user=_optional(text, node, "user"),
    )
    return msgspec.structs.replace(reference, text=_made_up(reference))


def _made_up(reference: Reference) -> str:
    place = reference.host or ""
    if reference.port is not None:
        place += f":{reference.port}"
    if reference.socket is not None:
        place = f"unix:{reference.socket}"
    return f"{reference.protocol}://{place}/{(reference.export or '').lstrip('/')}"


def _string(text: str, node: _Node, key: str) -> str:
    value = node.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        refuse(text, f"{key} is missing or no name")
    return value


def _optional(text: str, node: _Node, key: str) -> str | None:
    return None if node.get(key) is None else _string(text, node, key)


def _port(text: str, value: Any) -> int | None:
    if value is None:
        return None
    digits = str(value)
    if isinstance(value, bool) or not digits.isascii() or not digits.isdecimal() or int(digits[:9]) > MAX_PORT:
        refuse(text, "its port is no port")
    return int(digits)


def _configuration(path: str) -> Reference:
    return Reference(text=path, kind="file", protocol="file", path=path, role="config")


def _as_role(leaf: Reference, role: str) -> Reference:
    return msgspec.structs.replace(leaf, role=role if leaf.role == "file" else f"{role}.{leaf.role}")


def _joined(text: str, kind: Any, driver: str | None, format: str | None, leaves: list[Reference]) -> Reference:
    """One reference for a tree: its only leaf's particulars, or all its leaves as children."""
    if len(leaves) == 1:
        return msgspec.structs.replace(leaves[0], text=text, kind=kind, format=format, role="file", children=())
    path = next((leaf.path for leaf in leaves if leaf.role == "file" and leaf.protocol == "file"), None)
    return Reference(text=text, kind=kind, protocol=driver, path=path, format=format, children=tuple(leaves))

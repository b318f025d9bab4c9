"""Names that a protocol driver parses: `nbd:…`, `https://…`, `rbd:…`, `fat:…` and their like.

Source: the file-name parsers of QEMU's block drivers (block/nbd.c, curl.c, ssh.c, iscsi.c, rbd.c, gluster.c, nfs.c,
vvfat.c, nvme.c, null.c) and docs/system/qemu-block-drivers.rst.inc.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from imgtool.image.references.base import MAX_PORT, Reference, refuse
from imgtool.image.references.url import parse_url

NBD_PORT = 10809
_SSH_PORT = 22
_ISCSI_PORT = 3260
_GLUSTER_PORT = 24007
_URL_PORTS = {"http": 80, "https": 443, "ftp": 21, "ftps": 990, "tftp": 69}

_HOST_AND_PORT = re.compile(r"(?:\[(?P<six>[^\]]*)\]|(?P<host>[^:,]*)):(?P<port>[0-9]+)(?:,.*)?", re.DOTALL)
_PCI = re.compile(r"nvme://(?P<device>[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9])/(?P<namespace>[0-9]+)")


def parse_protocol(text: str, protocol: str) -> Reference:
    """What `text` means to the driver of `protocol`, the part before its first colon. A protocol that no driver known
    here has keeps its name, and nothing else is said about it."""
    if not protocol:
        refuse(text, "a protocol without a name")
    parser = _PARSERS.get(protocol)
    if parser is None:
        return Reference(text=text, kind="protocol", protocol=protocol)
    return parser(text)


def _file(text: str) -> Reference:
    protocol, _, path = text.partition(":")
    if not path:
        refuse(text, "it names no file")
    # QEMU joins no directory to a name that has a protocol: a relative one is of the current directory
    return Reference(text=text, kind="file" if protocol == "file" else "protocol", protocol=protocol, path=path)


def _nbd(text: str) -> Reference:
    if "://" in text:
        return _nbd_url(text)
    head, found, export = text.partition(":exportname=")
    place = head.removeprefix("nbd:")
    if not place or head == place or (found and not export):
        refuse(text, "it names no NBD server")
    if place.startswith("unix:"):
        if place == "unix:":
            refuse(text, "it names no socket")
        return Reference(text=text, kind="protocol", protocol="nbd", socket=place[5:], export=export)
    match = _HOST_AND_PORT.fullmatch(place)
    if match is None or int(match["port"][:9]) > MAX_PORT:
        refuse(text, "an NBD server is HOST:PORT or unix:PATH")
    host = match["host"] if match["six"] is None else match["six"]
    return Reference(text=text, kind="protocol", protocol="nbd", host=host, port=int(match["port"]), export=export)


def _nbd_url(text: str) -> Reference:
    url = parse_url(text)
    export = url.path.lstrip("/")
    if text.startswith("nbd+unix:"):
        if url.host or url.port or set(url.query) != {"socket"} or not url.query["socket"]:
            refuse(text, "it has to be nbd+unix:///EXPORT?socket=PATH")
        return Reference(
            text=text,
            kind="protocol",
            protocol="nbd",
            socket=url.query["socket"],
            export=export,
            user=url.user,
        )
    if not url.host or url.query:
        refuse(text, "it has to be nbd://HOST:PORT/EXPORT")
    port = url.port or NBD_PORT
    return Reference(
        text=text, kind="protocol", protocol="nbd", host=url.host, port=port, export=export, user=url.user
    )


def parse_web(text: str) -> Reference:
    """A URL for libcurl."""
    protocol = text.partition(":")[0]
    url = parse_url(text)
    if not url.host:
        refuse(text, "it names no host")
    return Reference(
        text=text,
        kind="protocol",
        protocol=protocol,
        host=url.host,
        port=url.port or _URL_PORTS.get(protocol),
        export=url.path or "/",
        user=url.user,
    )


def _ssh(text: str) -> Reference:
    url = parse_url(text)
    if not url.host or not url.path:
        refuse(text, "it has to be ssh://[USER@]HOST[:PORT]/PATH")
    return Reference(
        text=text,
        kind="protocol",
        protocol="ssh",
        host=url.host,
        port=url.port or _SSH_PORT,
        export=url.path,
        user=url.user,
    )


def _iscsi(text: str) -> Reference:
    url = parse_url(text)
    target, _, lun = url.path.strip("/").rpartition("/")
    if not url.host or not target or not lun.isdecimal():
        refuse(text, "it has to be iscsi://HOST[:PORT]/TARGET/LUN")
    return Reference(
        text=text,
        kind="protocol",
        protocol=text.partition(":")[0],
        host=url.host,
        port=url.port or _ISCSI_PORT,
        export=f"{target}/{lun}",
        user=(url.user or "").partition("%")[0] or None,
    )


def _rbd(text: str) -> Reference:
    words = _rbd_words(text.removeprefix("rbd:"))
    image, options = words[0], dict(word.partition("=")[::2] for word in words[1:])
    pool, slash, name = image.partition("/")
    if not pool or not slash or not name.rpartition("/")[2].partition("@")[0]:
        refuse(text, "it has to be rbd:POOL/IMAGE[@SNAPSHOT][:OPTION=VALUE…]")
    host = options.get("mon_host")
    return Reference(text=text, kind="protocol", protocol="rbd", host=host, export=image, user=options.get("id"))


def _rbd_words(text: str) -> list[str]:
    """The parts between colons; a backslash keeps the next character from meaning anything."""
    words = [""]
    characters = iter(text)
    for char in characters:
        if char == ":":
            words.append("")
        else:
            words[-1] += next(characters, "") if char == "\\" else char
    return words


def _gluster(text: str) -> Reference:
    url = parse_url(text)
    transport = text.partition(":")[0]
    volume, _, path = url.path.strip("/").partition("/")
    if not volume or not path:
        refuse(text, "it has to be gluster://HOST[:PORT]/VOLUME/PATH")
    export = f"{volume}/{path}"
    if transport == "gluster+unix":
        if url.host or set(url.query) != {"socket"} or not url.query["socket"]:
            refuse(text, "it has to be gluster+unix:///VOLUME/PATH?socket=PATH")
        return Reference(text=text, kind="protocol", protocol="gluster", socket=url.query["socket"], export=export)
    host = url.host or "localhost"
    return Reference(
        text=text, kind="protocol", protocol="gluster", host=host, port=url.port or _GLUSTER_PORT, export=export
    )


def _nfs(text: str) -> Reference:
    url = parse_url(text)
    if not url.host or not url.path.strip("/"):
        refuse(text, "it has to be nfs://HOST/EXPORT/FILE")
    return Reference(text=text, kind="protocol", protocol="nfs", host=url.host, port=url.port, export=url.path)


def _vvfat(text: str) -> Reference:
    """`fat:[floppy:][32:][rw:]DIRECTORY`; a letter between the last two colons is a drive of Windows."""
    directory = text.rpartition(":")[2]
    if re.search(r":[A-Za-z]:[^:]*\Z", text):
        directory = text[text.rindex(":") - 1 :]
    if not directory:
        refuse(text, "it names no directory")
    return Reference(text=text, kind="protocol", protocol="vvfat", path=directory)


def _nvme(text: str) -> Reference:
    match = _PCI.fullmatch(text)
    if match is None:
        refuse(text, "it has to be nvme://DOMAIN:BUS:SLOT.FUNCTION/NAMESPACE")
    return Reference(text=text, kind="protocol", protocol="nvme", export=f"{match['device']}/{match['namespace']}")


def _null(text: str) -> Reference:
    protocol = text.partition(":")[0]
    if text != f"{protocol}://":
        refuse(text, f"it has to be {protocol}://")
    return Reference(text=text, kind="protocol", protocol=protocol)


_PARSERS: dict[str, Callable[[str], Reference]] = {
    "file": _file,
    "host_device": _file,
    "host_cdrom": _file,
    **dict.fromkeys(("nbd", "nbd+tcp", "nbd+unix"), _nbd),
    **dict.fromkeys(_URL_PORTS, parse_web),
    "ssh": _ssh,
    "iscsi": _iscsi,
    "iser": _iscsi,
    "rbd": _rbd,
    **dict.fromkeys(("gluster", "gluster+tcp", "gluster+unix", "gluster+rdma"), _gluster),
    "nfs": _nfs,
    "fat": _vvfat,
    "nvme": _nvme,
    "null-co": _null,
    "null-aio": _null,
}

"""URLs as QEMU's block drivers take them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from imgtool.image.references.base import MAX_PORT, refuse


class Url(NamedTuple):
    user: str | None
    host: str | None
    port: int | None
    path: str
    """Unescaped, with its leading slash."""
    query: dict[str, str]


_URL = re.compile(r"[^:/?#]+://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?", re.DOTALL)
_AUTHORITY = re.compile(
    r"(?:(?P<user>[^@]*)@)?(?P<host>\[[0-9A-Za-z:.%]*\]|[^\[\]:@]*)(?::(?P<port>[0-9]*))?", re.DOTALL
)
_ESCAPES = re.compile(rb"%([0-9A-Fa-f]{2})")


def unescape(text: str) -> str:
    """`text` with its %XX bytes put in."""
    if "%" not in text:
        return text
    return os.fsdecode(_ESCAPES.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(text)))


def parse_url(text: str) -> Url:
    """The parts of `scheme://[user@][host][:port][/path][?query]`. ImageFormatError for what is no such URL."""
    match = _URL.fullmatch(text)
    authority = match and _AUTHORITY.fullmatch(match["authority"])
    if not match or not authority:
        refuse(text, "it is no URL")
    port = int(authority["port"][:9]) if authority["port"] else None
    if port is not None and port > MAX_PORT:
        refuse(text, "its port is no port")
    query = {}
    for pair in (match["query"] or "").split("&"):
        name, _, value = pair.partition("=")
        if name:
            query[unescape(name)] = unescape(value)
    return Url(
        user=unescape(authority["user"]) if authority["user"] else None,
        host=unescape(authority["host"].strip("[]")) or None,
        port=port,
        path=unescape(match["path"]),
        query=query,
    )

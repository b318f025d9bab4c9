"""Names of images in registries: `HOST[:PORT]/NAME[:TAG][@sha256:HEX]`.

Source: the OCI distribution specification ("Pulling manifests") for what names and tags are.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from imgtool.errors import UsageError
from imgtool.image.names import printable

DEFAULT_TAG = "latest"
SCHEMES = ("docker://", "oci://", "oci:")
"""What may stand before a reference, since other programs and recipes write it so."""

_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::(?P<port>[0-9]{1,5}))?")
_LONGEST_NAME = 255

_HUB = "docker.io"
_HUB_API = "registry-1.docker.io"


class Reference(NamedTuple):
    host: str
    """With its port, as it was written."""
    name: str
    """The repository."""
    tag: str | None
    digest: str | None
    """`sha256:HEX`, when the reference pins one."""

    @property
    def api_host(self) -> str:
        """Where requests go."""
        return _HUB_API if self.host in (_HUB, f"index.{_HUB}") else self.host

    @property
    def repository(self) -> str:
        return f"{self.host}/{self.name}"

    @property
    def version(self) -> str:
        """What names the manifest in the repository: the digest when there is one."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return self.repository + tag + (f"@{self.digest}" if self.digest else "")


def is_loopback(host: str) -> bool:
    """Whether `host`, maybe with a port, names this very machine."""
    name = host.rpartition(":")[0] if re.search(r":[0-9]+\Z", host) and not host.endswith("]") else host
    name = name.strip("[]").lower()
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def parse_reference(text: str) -> Reference:
    """The reference that `text` is; without a tag and a digest its tag is `latest`. UsageError when it is none."""
    rest = next((text.removeprefix(scheme) for scheme in SCHEMES if text.startswith(scheme)), text)
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _wrong(text, f"{printable(digest)!r} is not a digest", "sha256: and 64 hexadecimal digits")
    host, slash, rest = rest.partition("/")
    if not slash or not _is_host(host):
        raise _wrong(
            text, "it does not begin with a registry", "HOST[:PORT]/NAME[:TAG], such as localhost:5000/web:1"
        )
    name, colon, tag = rest.partition(":")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise _wrong(text, f"{printable(name)!r} is not a repository name", "lower-case letters, digits, and . _ - /")
    if colon and not _TAG.fullmatch(tag):
        raise _wrong(text, f"{printable(tag)!r} is not a tag", "letters, digits, and _ . -, at most 128 of them")
    return Reference(host, name, (tag or None) if colon or digest else DEFAULT_TAG, digest or None)


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None or not ("." in text or ":" in text or text == "localhost"):
        return False
    return match["port"] is None or 0 < int(match["port"]) < 65536


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    return _TAG.fullmatch(text) is not None


def _wrong(text: str, message: str, hint: str) -> UsageError:
    return UsageError(f"{printable(text)!r} is no image in a registry: {message}", hint=hint)

"""One repository of a registry, as the OCI distribution specification has it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from imgtool.publish.oci.errors import DigestError, RegistryError
from imgtool.publish.oci.reference import is_tag
from imgtool.publish.oci.transport import BrokenConnection, Transport, number
from imgtool.publish.oci.values import INDEX, MANIFEST, MAX_DOCUMENT, Descriptor, decode, digest_of

_ACCEPTED = (
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_OCTETS = "application/octet-stream"


class Session(NamedTuple):
    """An upload that was begun."""

    location: str
    offset: int
    """Bytes that the registry has of it."""


class _Tags(msgspec.Struct):
    tags: tuple[str, ...] | None
    """None is what some registries say of a repository whose tags were all removed."""


class Registry:
    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.reference = transport.reference

    def manifest(self, version: str) -> tuple[bytes, str, str]:
        """(bytes, media type, digest) of the manifest that a tag or digest names. RegistryNotFoundError when there is
        none; DigestError when it is not the one that the digest names."""
        what = f"no manifest of {self.reference}"
        url, accepted = self.transport.url("manifests", version), {"Accept": ", ".join(_ACCEPTED)}
        content, headers = self._bounded(url, MAX_DOCUMENT, what, accepted)
        digest = digest_of(content)
        said = headers.get("Docker-Content-Digest", digest)
        for wanted in (said, version if version.startswith("sha256:") else digest):
            if wanted != digest:
                raise DigestError(f"the registry sent another manifest of {self.reference} than {wanted}")
        return content, headers.get("Content-Type", "").partition(";")[0], digest

    def tags(self) -> list[str]:
        """Tags of the repository, the first thousand. RegistryNotFoundError when there is no such repository, other
        RegistryErrors when it does not say."""
        what = f"no tags of {self.reference.repository}"
        content, _ = self._bounded(self.transport.url("tags", "list?n=1000"), MAX_DOCUMENT, what)
        return [tag for tag in decode(content, _Tags, what).tags or () if is_tag(tag)]

    def document(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small blob. DigestError when they are not those."""
        what = f"no blob {descriptor.digest} of {self.reference.repository}"
        if descriptor.size > MAX_DOCUMENT:
            raise RegistryError(f"{what}: {descriptor.size} bytes are too many for a document")
        content, _ = self._bounded(self._blob(descriptor.digest), descriptor.size, what)
        if digest_of(content) != descriptor.digest:
            raise DigestError(f"the registry sent other bytes than {descriptor.digest}")
        return content

    def _bounded(
        self, url: str, most: int, what: str, headers: dict[str, str] | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """(bytes, headers) of a document of at most `most` bytes, all of it asked for again when it breaks off."""

        def once() -> tuple[bytes, Mapping[str, str]]:
            response = self.transport.once("GET", url, headers=headers, expect=(200,), what=what, stream=True)
            content = bytearray()
            try:
                for piece in response.iter_content(65536):
                    content += piece
                    if len(content) > most:
                        raise RegistryError(f"{what}: it is larger than {most} bytes")
            except OSError as error:
                raise self.transport.broken_off(error) from error
            finally:
                response.close()
            return bytes(content), response.headers

        return self.transport.retrying(once, what)

    def has_blob(self, digest: str, size: int | None = None) -> bool:
        """Whether the repository has the blob. RegistryError when the one it has is of another size."""
        what = f"{self.reference.repository} does not say whether it has {digest}"
        response = self.transport.request("HEAD", self._blob(digest), expect=(200, 404), what=what)
        found = number(response.headers.get("Content-Length", ""))
        if response.status_code == 200 and size is not None and found is not None and found != size:
            raise RegistryError(f"the registry's {digest} has {found} bytes, not {size}")
        return response.status_code == 200

    def begin_upload(self, *, mount: str | None = None, source: str | None = None) -> Session | None:
        """A new upload; None when the blob `mount` of the repository `source`, which is on the same registry, is now
        here too, and nothing is to be uploaded."""
        params = {"mount": mount, "from": source} if mount is not None and source is not None else None
        what = f"nothing can be pushed to {self.reference.repository}"
        url = self.transport.url("blobs", "uploads/")
        response = self.transport.request("POST", url, params=params, expect=(201, 202), what=what)
        if response.status_code == 201:
            return None
        location = response.headers.get("Location")
        if location is None:
            raise RegistryError(f"{what}: the registry does not say where to")
        return Session(self.transport.beside(location), 0)

    def upload_state(self, location: str) -> Session | None:
        """How far an upload has come; None when the registry does not know it any more."""
        response = self.transport.request(
            "GET",
            location,
            expect=(200, 202, 204, 400, 404, 416),
            what="the registry does not say how far an upload is",
        )
        if response.status_code in (400, 404, 416):
            return None
        return _session(self.transport, response.headers, location, 0)

    def append(self, session: Session, data: bytes) -> Session:
        """Sends more of an upload. BrokenConnection when that fails on the way."""
        start = session.offset
        response = self.transport.once(
            "PATCH",
            session.location,
            headers={"Content-Type": _OCTETS, "Content-Range": f"{start}-{start + len(data) - 1}"},
            data=data,
            expect=(201, 202, 204, 404, 416),
            what=f"the registry takes no more of a blob for {self.reference.repository}",
        )
        if response.status_code in (404, 416):
            raise BrokenConnection("the registry has lost the place in an upload")
        after = _session(self.transport, response.headers, session.location, start + len(data))
        if after.offset <= start:
            raise BrokenConnection(f"the registry is sent {len(data)} bytes and says that none came")
        return after

    def finish_upload(self, session: Session, digest: str) -> None:
        """The upload becomes the blob `digest`. DigestError when the registry has received other bytes."""
        response = self.transport.once(
            "PUT",
            session.location,
            params={"digest": digest},
            headers={"Content-Type": _OCTETS, "Content-Length": "0"},
            expect=(201, 204, 400, 404),
            what=f"the registry does not take {digest}",
        )
        if response.status_code == 404:
            raise BrokenConnection("the registry has forgotten the upload")
        if response.status_code == 400:
            raise DigestError(
                f"the registry received other bytes than {digest}",
                hint="was the image changed while it was pushed? run it again",
            )

    def put_manifest(self, content: bytes, media_type: str, version: str) -> None:
        """Names a manifest; from then on it can be pulled. DigestError when the registry has another one then."""
        response = self.transport.request(
            "PUT",
            self.transport.url("manifests", version),
            data=content,
            headers={"Content-Type": media_type},
            expect=(201, 202),
            what=f"{self.reference} is not taken",
        )
        said = response.headers.get("Docker-Content-Digest")
        if said is not None and said != digest_of(content):
            raise DigestError(f"the registry stored another manifest as {self.reference}: {said}")

    def _blob(self, digest: str) -> str:
        return self.transport.url("blobs", digest)

    def blob_url(self, digest: str) -> str:
        return self._blob(digest)


def _session(transport: Transport, headers: object, location: str, offset: int) -> Session:
    """What a response says of an upload. `Range: 0-N` counts N in, but for a registry that has nothing yet says 0-0
    too: one byte is no chunk of ours."""
    found = headers.get("Location")  # type: ignore[attr-defined]
    match = _RANGE.fullmatch(headers.get("Range", ""))  # type: ignore[attr-defined]
    if match is not None:
        last = int(match[1])
        offset = last + 1 if last else 0
    return Session(transport.beside(found) if found else location, offset)

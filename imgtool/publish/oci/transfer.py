"""Blobs to and from a registry, going on where a connection broke, in this run or the next.

An upload goes on where the registry says it is. Docker's own registry (2.8) forgets one that broke within a chunk,
since what it has then is not what its signed state says; such a layer is sent anew, and only such a one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from imgtool.errors import ImageError, ImageInUseError
from imgtool.image.names import printable
from imgtool.publish.oci.blob import PIECE, Blob
from imgtool.publish.oci.errors import DigestError, RegistryError
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.registry import Registry, Session
from imgtool.publish.oci.transport import BrokenConnection
from imgtool.publish.oci.values import Descriptor

if TYPE_CHECKING:
    import requests

CHUNK = 16 << 20
"""Bytes that are uploaded in one request."""

_ARRIVING = 128 << 10
"""Bytes that are taken from a connection at once: what is lost when it breaks."""

_HOLE = 64 << 10
"""Zeros of this many bytes are not written."""

_ZEROS = bytes(_HOLE)

Count = Callable[[int], None]
"""Called with the bytes of each piece; with a negative number when they have to come again."""

State = Literal["present", "mounted", "uploaded"]


def upload(registry: Registry, digest: str, blob: Blob, known: Known, count: Count) -> State:
    """Has the repository have `blob`, and says how: it had it, another repository of the registry had it, or it was
    sent. RegistryError when that cannot be; what was sent until then is not sent again by the next run."""
    repository = registry.reference.repository
    if registry.has_blob(digest, blob.size):
        known.note_repository(digest, repository)
        count(blob.size)
        return "present"
    session = _resumed(registry, digest, blob, known)
    for other in known.repositories(digest, registry.reference.host) if session is None else ():
        if other != registry.reference.name:
            session = registry.begin_upload(mount=digest, source=other)
            if session is None:
                known.note_repository(digest, repository)
                count(blob.size)
                return "mounted"
            break
    _Upload(registry, digest, blob, known, count, session).run()
    known.note_upload(repository, digest, None)
    known.note_repository(digest, repository)
    return "uploaded"


def _resumed(registry: Registry, digest: str, blob: Blob, known: Known) -> Session | None:
    location = known.upload(registry.reference.repository, digest)
    session = registry.upload_state(location) if location is not None else None
    return session if session is not None and session.offset <= blob.size else None


class _Upload:
    def __init__(
        self, registry: Registry, digest: str, blob: Blob, known: Known, count: Count, session: Session | None
    ) -> None:
        self._registry = registry
        self._digest = digest
        self._blob = blob
        self._known = known
        self._count = count
        self._session = session
        self._counted = 0
        self._furthest = 0
        self._restarted = False

    def run(self) -> None:
        self._tell(self._session.offset if self._session else 0)
        what = f"{self._digest} could not be pushed to {self._registry.reference.repository}"
        self._registry.transport.retrying(self._go_on, what, moved=lambda: self._furthest)

    def _go_on(self) -> None:
        if self._session is None:
            self._session = self._registry.begin_upload()
        session = self._session
        assert session is not None, "nothing was to be mounted"
        try:
            while session.offset < self._blob.size:
                if self._registry.transport.halted.is_set():
                    raise RegistryError("stopped, since another transfer failed")
                session = self._registry.append(session, self._blob.read(session.offset, CHUNK))
                self._note(session)
            self._registry.finish_upload(session, self._digest)
        except BrokenConnection:
            self._note(self._registry.upload_state(session.location))
            raise
        except DigestError:
            # A broken upload may have been taken up at the wrong place. Once more from the beginning, and then it is
            # said.
            self._note(None)
            if self._restarted:
                raise
            self._restarted = True
            raise BrokenConnection("the upload was spoilt") from None

    def _note(self, session: Session | None) -> None:
        if session is not None and session.offset > self._blob.size:
            session = None
        self._session = session
        self._known.note_upload(
            self._registry.reference.repository, self._digest, session.location if session else None
        )
        self._tell(session.offset if session else 0)

    def _tell(self, offset: int) -> None:
        self._count(offset - self._counted)
        self._counted = offset
        self._furthest = max(self._furthest, offset)


@contextlib.contextmanager
def downloading(path: str) -> Iterator[int]:
    """The file at `path`, which is made, open and held by this process. ImageInUseError when another holds it."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ImageError(f"{printable(path)} cannot be made: {error.strerror}", path=path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock its last holder may have finished it and given it its name.
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                break
        except BlockingIOError:
            os.close(fd)
            raise ImageInUseError(
                f"{printable(path)} is being pulled by another imgtool", hint="wait for it to end", path=path
            ) from None
        except FileNotFoundError:
            pass
        os.close(fd)
    try:
        yield fd
    finally:
        os.close(fd)


def download(registry: Registry, layer: Descriptor, fd: int, count: Count) -> None:
    """Makes the file open at `fd`, which may hold the blob's beginning, the blob, and on disk.

    DigestError when the registry sends other bytes; the file is empty then. RegistryError when the connection
    breaks for good; the file holds what has come."""
    begun = os.fstat(fd).st_size > 0
    loader = _Download(registry, layer, fd, count)
    try:
        loader.run()
    except DigestError:
        if not begun:
            raise
        loader.run()  # its beginning, of another run, was not what it seemed
    os.fsync(fd)


class _Download:
    def __init__(self, registry: Registry, layer: Descriptor, fd: int, count: Count) -> None:
        self._registry = registry
        self._layer = layer
        self._fd = fd
        self._count = count
        self._have = 0
        self._furthest = 0
        self._hash = hashlib.sha256()

    def run(self) -> None:
        self._read_beginning()
        what = f"{self._layer.digest} could not be pulled from {self._registry.reference.repository}"
        self._registry.transport.retrying(self._go_on, what, moved=lambda: self._furthest)
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self._layer.digest:
            self._restart()
            raise DigestError(
                f"the registry sent other bytes than {self._layer.digest}: they have the digest {found}",
                hint="the registry, or something on the way to it, changes what it stores",
            )

    def _read_beginning(self) -> None:
        size = os.fstat(self._fd).st_size
        if size > self._layer.size:
            self._restart()
            return
        while self._have < size:
            piece = os.pread(self._fd, PIECE, self._have)
            self._took(piece)

    def _took(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._have += len(piece)
        self._furthest = max(self._furthest, self._have)
        self._count(len(piece))

    def _restart(self) -> None:
        self._count(-self._have)
        self._have = 0
        self._hash = hashlib.sha256()
        os.ftruncate(self._fd, 0)

    def _go_on(self) -> None:
        if self._have == self._layer.size:
            return
        headers = {"Range": f"bytes={self._have}-{self._layer.size - 1}"} if self._have else {}
        response = self._registry.transport.once(
            "GET",
            self._registry.blob_url(self._layer.digest),
            headers=headers,
            expect=(200, 206, 416),
            what=f"{self._registry.reference.repository} does not give {self._layer.digest}",
            stream=True,
        )
        try:
            if self._have and not _goes_on(response, self._have):
                self._restart()
                if response.status_code != 200:
                    raise BrokenConnection("the registry cannot go on with a blob")
            self._take(response)
        finally:
            response.close()
        if self._have < self._layer.size:
            raise BrokenConnection(f"the connection ended {self._layer.size - self._have} bytes too early")

    def _take(self, response: requests.Response) -> None:
        import requests
        import urllib3

        try:
            for piece in response.iter_content(_ARRIVING):
                if self._registry.transport.halted.is_set():
                    raise RegistryError("stopped, since another transfer failed")
                if self._have + len(piece) > self._layer.size:
                    self._restart()
                    raise DigestError(f"the registry sent more bytes than {self._layer.digest} has")
                self._write(piece)
                self._took(piece)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._registry.transport.broken_off(error) from error

    def _write(self, piece: bytes) -> None:
        """Appends `piece`; zeros become a hole. The file's size says how far it has come."""
        try:
            for at in range(0, len(piece), _HOLE):
                part = piece[at : at + _HOLE]
                if part != _ZEROS[: len(part)]:
                    write_all(self._fd, part, self._have + at)
            os.ftruncate(self._fd, self._have + len(piece))
        except OSError as error:
            raise ImageError(f"{self._layer.digest} cannot be written: {error.strerror}") from error


def _goes_on(response: requests.Response, offset: int) -> bool:
    match = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
    return response.status_code == 206 and match is not None and int(match[1]) == offset


def write_all(fd: int, data: bytes, offset: int) -> None:
    """OSError unless all is written: a disk that gets full takes a part without a word."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written

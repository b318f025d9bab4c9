"""Files of the web, which others build on: fetched once, read-only, found again by their digest."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from imgtool._version import __version__
from imgtool.errors import ImageError, ImgtoolError, UsageError
from imgtool.image.names import printable
from imgtool.publish.oci.transfer import downloading, write_all

Progress = Callable[[float], None]

SCHEMES = ("https://", "http://")

LENGTHS = {"sha256": 64, "sha512": 128}
"""The digests that can pin a file, and how many hexadecimal digits they have."""

TRIES = 5
"""So often in a row a connection may break without anything having come."""

_PAUSE = 1.0
_ANSWER_SECONDS = 60.0
_PIECE = 1 << 20
_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that may be others in a moment."""
_BEYOND = 416
"""Nothing comes after what is here."""


class DownloadError(ImgtoolError):
    """A file of the web could not be fetched, or is not the one that was wanted."""

    code = "download"


def is_url(text: str) -> bool:
    return text.startswith(SCHEMES)


def name_of(url: str, digest: str) -> str:
    """What the file of this digest is called here: as on the web, with the digest's beginning before the suffix."""
    last = re.sub(r"[^A-Za-z0-9._+-]", "-", unquote(urlsplit(url).path).rpartition("/")[2]).lstrip(".-")
    stem, suffix = os.path.splitext(last or "image")
    return f"{stem[:100]}-{digest.partition(':')[2][:12]}{suffix[:20]}"


def download(url: str, digest: str, path: str, *, progress: Progress | None = None, tries: int = TRIES) -> None:
    """Makes the file at `path`, read-only and on disk, which is at `url` and has `digest` (`sha256:HEX` or
    `sha512:HEX`). What came of it in an earlier attempt is not fetched again.

    UsageError for what is no digest. DownloadError when the file cannot be had, or is another;
    ImageError when it cannot be written."""
    algorithm, _, wanted = digest.partition(":")
    if LENGTHS.get(algorithm) != len(wanted) or not re.fullmatch("[0-9a-f]*", wanted):
        raise UsageError(f"{printable(digest)!r} is not a digest", hint="sha256: and 64 hexadecimal digits")
    part = f"{path}.part"
    with downloading(part) as fd:
        transfer = _Transfer(url, fd, part, algorithm, progress)
        begun = transfer.have > 0
        transfer.complete(tries)
        if begun and transfer.digest() != wanted:  # its beginning, of another attempt, was not what it seemed
            transfer.restart()
            transfer.complete(tries)
        if transfer.digest() != wanted:
            os.unlink(part)
            raise DownloadError(
                f"{printable(url)} is not the file that {algorithm} pins",
                hint=f"its {algorithm} is {transfer.digest()}",
                path=url,
            )
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        os.rename(part, path)


class _Transfer:
    """A file that comes into the one at `path`, open at `fd`, which may hold its beginning."""

    def __init__(self, url: str, fd: int, path: str, algorithm: str, progress: Progress | None) -> None:
        self._url, self._fd, self._path = url, fd, path
        self._algorithm, self._progress = algorithm, progress
        self._hash = hashlib.new(algorithm)
        self.have = 0
        while piece := os.pread(fd, _PIECE, self.have):
            self._hash.update(piece)
            self.have += len(piece)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def restart(self) -> None:
        os.ftruncate(self._fd, 0)
        self._hash, self.have = hashlib.new(self._algorithm), 0

    def complete(self, tries: int) -> None:
        left = tries
        while True:
            before = self.have
            try:
                self._go_on()
                return
            except (OSError, http.client.HTTPException) as error:
                left = tries if self.have > before else left - 1
                if left <= 0 or not _may_pass(error):
                    raise DownloadError(
                        f"{printable(self._url)} cannot be fetched: {_words(error)}",
                        hint="run it again: it resumes where it stopped" if self.have else None,
                        path=self._url,
                    ) from error
                time.sleep(_PAUSE)

    def _go_on(self) -> None:
        headers = {"User-Agent": f"imgtool/{__version__}", "Accept-Encoding": "identity"}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
        request = urllib.request.Request(self._url, headers=headers)
        try:
            answer = urllib.request.urlopen(request, timeout=_ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()  # the connection: an error holds it for the page that may come with it
            if error.code == _BEYOND and self.have:
                return
            raise
        with answer:
            if self.have and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                self.restart()
            left = int(answer.headers.get("Content-Length") or 0)
            size = self.have + left
            while piece := answer.read(_PIECE):
                self._write(piece)
                self._hash.update(piece)
                self.have += len(piece)
                if self._progress is not None and left:
                    self._progress(100 * self.have / size)
            if left and self.have < size:
                raise http.client.IncompleteRead(b"", size - self.have)

    def _write(self, piece: bytes) -> None:
        try:
            write_all(self._fd, piece, self.have)
        except OSError as error:
            raise ImageError(
                f"{printable(self._path)} cannot be written: {error.strerror}",
                hint="make room and run it again: it resumes where it stopped",
                path=self._path,
            ) from error


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may have more luck."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in _PASSING
    import ssl

    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return not isinstance(reason, ssl.SSLCertVerificationError)


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {printable(str(error.reason))}"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended too early"
    return printable(str(error.reason if isinstance(error, urllib.error.URLError) else error))

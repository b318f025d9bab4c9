"""Bounded reading of an image's bytes: whatever a header claims, no more than `READ_LIMIT` bytes are read."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from imgtool.errors import ImageFormatError, ImageNotFoundError, ImageUnreadableError
from imgtool.image.names import PathLike, absolute, printable

HEAD = 4096
"""Bytes of the first read, which is the only one for an ordinary qcow2 and for raw."""

READ_LIMIT = 4 << 20
"""Bytes that reading one header may take from the image, all its reads together. The largest honest header is a
qcow2's first cluster of 2 MiB, of which only the extensions' heads and the short ones' bodies are read."""

_SECTOR = 512
_UNKNOWN_SIZE = 1 << 62


@contextlib.contextmanager
def opened(image: PathLike) -> Iterator[int]:
    """A descriptor of the regular file or block device `image`, for reading. ImageNotFoundError where there is none,
    ImageUnreadableError for anything else that cannot be read."""
    path = absolute(image)
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageUnreadableError(f"{printable(path)} is neither a file nor a block device", path=path)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(f"{printable(path)} does not exist", path=path) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ImageUnreadableError(f"{printable(path)} cannot be read: {why}", path=path) from error
    try:
        yield fd
    finally:
        os.close(fd)


class CutShortError(ImageFormatError):
    """What is asked for comes later than the buffered beginning of a stream."""


class Source:
    """An image as its reader sees it: the first bytes at once, others by offset, zeros past the end (as QEMU reads).

    Every failure is an ImageFormatError: an offset past 2⁶³, more bytes than the limit, a read that fails.
    """

    __slots__ = ("_left", "_limit", "_read", "_size", "head", "size_known")

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        size: int | Callable[[], int],
        *,
        limit: int = READ_LIMIT,
        head: bytes | None = None,
    ) -> None:
        self._read = read
        self._size = size
        self._left = self._limit = limit - HEAD
        self.head = read(0, HEAD) if head is None else head
        """The first `HEAD` bytes, fewer when the file is shorter."""
        self.size_known = True

    @classmethod
    def of(cls, fd: int, *, limit: int = READ_LIMIT, head: bytes | None = None) -> Source:
        """The file open at `fd`, read with pread so that its position stays; `head` is its first `HEAD` bytes where
        they were read before."""

        def read(offset: int, length: int) -> bytes:
            try:
                return os.pread(fd, length, offset)
            except OSError as error:
                raise ImageFormatError(f"the image cannot be read: {error.strerror}") from error

        return cls(read, lambda: size_of(fd), limit=limit, head=head)

    @classmethod
    def of_bytes(cls, data: bytes, *, whole: bool = True, limit: int = READ_LIMIT) -> Source:
        """A buffered image, or with `whole` false the beginning of one: its size is then not known, and what lies
        past the buffer is a CutShortError."""

        def read(offset: int, length: int) -> bytes:
            if not whole and offset + length > len(data) and (offset or length > HEAD):
                raise CutShortError(f"what lies past the first {len(data)} bytes was not there to be looked at")
            return data[offset : offset + length]

        source = cls(read, len(data) if whole else _UNKNOWN_SIZE, limit=limit)
        source.size_known = whole
        return source

    @property
    def size(self) -> int:
        """Bytes in the file or block device."""
        if not isinstance(self._size, int):
            self._size = self._size()
        return self._size

    @property
    def sectors(self) -> int:
        """Sectors of 512 bytes in the file, a last partial one counted, as QEMU's block layer sees it."""
        return -(-self.size // _SECTOR)

    @property
    def only_head(self) -> bool:
        """Whether nothing but `head` was looked at so far, not even how large the file is: then another file that
        begins with the same bytes says the same."""
        return self._left == self._limit and not isinstance(self._size, int)

    def again(self, limit: int) -> Source:
        """The same bytes with a bound of its own."""
        source = Source(self._read, self.size, limit=limit)
        source.size_known = self.size_known
        return source

    def at(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`; what lies past the end of the file reads as zeros."""
        head = self.head
        end = offset + length
        if offset >= 0 and end <= len(head):
            return head[offset:end]
        if offset < 0 or length < 0 or end >= 1 << 63:
            raise ImageFormatError(f"the header points to offset {offset:#x}, where no file has bytes")
        self._left -= length
        if self._left < 0:
            raise ImageFormatError("the header is larger than any program would write")
        parts = []
        left = length
        while left:
            piece = self._read(offset, left)
            if not piece:
                parts.append(bytes(left))
                break
            parts.append(piece)
            offset += len(piece)
            left -= len(piece)
        return b"".join(parts)


def size_of(fd: int) -> int:
    """Bytes in the regular file or block device open at `fd`. ImageFormatError for what has no size."""
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        if stat.S_ISBLK(status.st_mode):
            return os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise ImageFormatError(f"the image cannot be read: {error.strerror}") from error
    raise ImageFormatError("not a regular file or block device")

"""Content digests: what a guest reads from a disk, in one line of text.

Equal for every image, chain and format that holds the same disk. The disk is cut into chunks of 1 MiB; the digest is
the SHA-256 of its size and, for each chunk that is not all zeros, of the chunk's number and its own SHA-256. Zeros
cost nothing: holes are not read. Where the bytes lie plainly in the files they are read from there, on all
processors; what is compressed or in formats with secrets of their own is unpacked by qemu-img, a slice at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple, Self

from imgtool.errors import CommandError, ImageInUseError, ImageUnreadableError
from imgtool.image.locks import forbid_writers
from imgtool.image.names import printable
from imgtool.image.users import users_of
from imgtool.qemu import img_argv
from imgtool.qemu.extents import PLAIN, Extent, Layer, options_of, read_extents
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.img_base import ImgBase
from imgtool.qemu.process import workers
from imgtool.qemu.ranges import Range, aligned, holds, within

PREFIX = "imgtool1:"
"""Stands before the hexadecimal digits, and changes when the definition does."""

CHUNK = 1 << 20
_SLICE = 256 * CHUNK
"""What qemu-img unpacks at once, so that a scratch file is never larger."""
_SMALL_SLICES = (8 * CHUNK, 64 * CHUNK)
"""The same for a part of the disk, whose chunks may be few and far between."""
_MOST_SMALL = 32
"""So many small slices at most: each takes a process."""
_BATCH = 16
_ZEROS = bytes(CHUNK)
_MAGIC = b"imgtool1\n"
_HEAD = len(_MAGIC) + 8
_ENTRY = struct.Struct(">Q32s")

Progress = Callable[[float], None]


class _Scratch:
    """A file without a name: its space is given back when nobody refers to it any more."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        os.unlink(path)

    def __del__(self) -> None:
        os.close(self.fd)


class _Piece(NamedTuple):
    """Bytes of one chunk: where in the chunk (before `_chunks`: in the disk), how many, and where they are."""

    at: int
    length: int
    fd: int
    offset: int
    owner: _Scratch | None = None


_Chunk = tuple[int, list[_Piece]]


class _Slices(NamedTuple):
    """The slices of the disk, of `size` bytes, that qemu-img has to unpack."""

    size: int
    packed: set[int]


class ContentMap(NamedTuple):
    """What a guest reads of a disk of `size` bytes: the SHA-256 of each chunk of `CHUNK` bytes that is not all zeros,
    by its number."""

    size: int
    chunks: Mapping[int, bytes]

    @property
    def digest(self) -> str:
        """The content digest."""
        return PREFIX + hashlib.sha256(self.encoded()).hexdigest()

    def encoded(self) -> bytes:
        """All of it, the same for the same disk: what the digest is the SHA-256 of."""
        entries = (_ENTRY.pack(number, self.chunks[number]) for number in sorted(self.chunks))
        return b"".join((_MAGIC, self.size.to_bytes(8, "big"), *entries))

    @classmethod
    def decoded(cls, content: bytes, digest: str) -> Self | None:
        """What `encoded` made `content` of; None when it is not the map of the disk of this digest."""
        if PREFIX + hashlib.sha256(content).hexdigest() != digest:
            return None
        size = int.from_bytes(content[len(_MAGIC) : _HEAD], "big")
        return cls(size, dict(_ENTRY.iter_unpack(content[_HEAD:])))


def content_digest(
    img: ImgBase,
    layers: Sequence[Layer],
    virtual_size: int,
    *,
    extents: Sequence[Extent] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> str:
    """The digest of the disk of `virtual_size` bytes that `layers`, topmost first, make up.

    ImageInUseError when a program writes one of the files; CommandError when qemu-img cannot read them, for lack of a
    key for one. Nothing that heeds QEMU's locks can write them meanwhile.
    """
    return content_map(img, layers, virtual_size, extents=extents, threads=threads, progress=progress).digest


def content_map(
    img: ImgBase,
    layers: Sequence[Layer],
    virtual_size: int,
    *,
    extents: Sequence[Extent] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ContentMap:
    """What the digest is made of; as for `content_digest`."""
    found = chunk_digests(img, layers, virtual_size, extents=extents, threads=threads, progress=progress)
    return ContentMap(virtual_size, found)


def map_over(img: ImgBase, layers: Sequence[Layer], virtual_size: int, below: ContentMap) -> ContentMap:
    """The map of the disk that `layers` make up, where `below` is that of all but the topmost: only those chunks are
    read in which the topmost holds something. Raises as `content_digest`."""
    extents = read_extents(img, layers)
    held = [extent for extent in extents if extent.depth == 0 and extent.present is not False]
    edge = min(virtual_size, below.size)
    touched = aligned([*held, Range(edge, edge != max(virtual_size, below.size))], CHUNK)
    chunks = {
        number: digest
        for number, digest in below.chunks.items()
        if number * CHUNK < virtual_size and not holds(touched, number * CHUNK)
    }
    chunks |= chunk_digests(img, layers, virtual_size, extents=list(within(extents, touched)))
    return ContentMap(virtual_size, chunks)


def chunk_digests(
    img: ImgBase,
    layers: Sequence[Layer],
    virtual_size: int,
    *,
    chunk: int = CHUNK,
    extents: Sequence[Extent] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[int, bytes]:
    """The SHA-256 of each chunk of `chunk` bytes (at most `CHUNK`, which it divides) that is not all zeros, by its
    number. As for `content_digest`; `extents` may be a part of the disk, in whole chunks: then of these alone."""
    threads = threads or os.cpu_count() or 1
    asked = None if extents is None else aligned(extents, chunk)
    with contextlib.ExitStack() as stack:
        fds = [_opened(stack, layer) for layer in layers]
        if extents is None:
            extents = read_extents(img, layers)
        slices = _slices(extents, layers, small=asked is not None)
        pieces = _plain_pieces(extents, fds, slices)
        if slices.packed:
            unpacker = _Unpacker(stack, img, layers, virtual_size, slices.size)
            pieces = chain(unpacker.slices(sorted(slices.packed), threads), pieces)
        work = _Work(virtual_size, chunk, _chunks(pieces, chunk), extents, progress)
        work.run(threads)
        if asked is None:
            return work.found
        return {number: digest for number, digest in work.found.items() if holds(asked, number * chunk)}


def _opened(stack: contextlib.ExitStack, layer: Layer) -> int:
    """The file that holds the layer's data, open; it and the image are closed to writers."""
    fd = -1
    for path in dict.fromkeys((layer.path, layer.data_file or layer.path)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ImageUnreadableError(f"{printable(path)} cannot be read: {error.strerror}", path=path) from error
        stack.callback(os.close, fd)
        if not forbid_writers(fd):
            raise ImageInUseError(
                f"{printable(path)} is in use for writing: its content changes while it is read",
                hint=users_of(path).ending,
                path=path,
            )
    return fd


def _slices(extents: Sequence[Extent], layers: Sequence[Layer], *, small: bool) -> _Slices:
    packed = [extent for extent in extents if extent.data and not extent.zero and _is_packed(extent, layers)]
    for size in (*_SMALL_SLICES, _SLICE) if small else (_SLICE,):
        found = {number for one in packed for number in range(one.start // size, (one.end - 1) // size + 1)}
        if len(found) <= _MOST_SMALL:
            break
    return _Slices(size, found)


def _is_packed(extent: Extent, layers: Sequence[Layer]) -> bool:
    return extent.offset is None or layers[extent.depth].format not in PLAIN


def _plain_pieces(extents: Sequence[Extent], fds: Sequence[int], slices: _Slices) -> Iterator[_Piece]:
    """The data of the disk, but for that in the slices that are unpacked."""
    size, packed = slices
    for extent in extents:
        if not extent.data or extent.zero:
            continue
        if not packed:
            assert extent.offset is not None
            yield _Piece(extent.start, extent.length, fds[extent.depth], extent.offset)
            continue
        at = extent.start
        while at < extent.end:
            end = min(extent.end, (at // size + 1) * size)
            if at // size not in packed:
                assert extent.offset is not None
                yield _Piece(at, end - at, fds[extent.depth], extent.offset + at - extent.start)
            at = end


def _chunks(pieces: Iterable[_Piece], size: int) -> Iterator[_Chunk]:
    """Cuts pieces of the disk at the chunks' bounds, and gathers those of each chunk."""
    number = -1
    here: list[_Piece] = []
    for piece in pieces:
        at, offset, left = piece.at, piece.offset, piece.length
        while left:
            chunk, inside = divmod(at, size)
            length = min(left, size - inside)
            if chunk != number:
                if here:
                    yield number, here
                number, here = chunk, []
            here.append(_Piece(inside, length, piece.fd, offset, piece.owner))
            at, offset, left = at + length, offset + length, left - length
    if here:
        yield number, here


class _Unpacker:
    """Has qemu-img write slices of the disk as raw scratch files, beside the image where that can be."""

    def __init__(
        self, stack: contextlib.ExitStack, img: ImgBase, layers: Sequence[Layer], virtual_size: int, size: int
    ) -> None:
        self.img, self.layers, self.virtual_size, self.size = img, layers, virtual_size, size
        folder = os.path.dirname(layers[0].path)
        self.directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=".imgtool-", dir=folder if os.access(folder, os.W_OK) else None)
        )

    def slices(self, numbers: Sequence[int], ahead: int) -> Iterator[_Piece]:
        """The data of the slices `numbers`, `ahead` of which are unpacked at the same time."""
        with workers(ahead) as pool:
            waiting = deque(pool.submit(self._unpack, number) for number in numbers[:ahead])
            for index, number in enumerate(numbers):
                scratch = waiting.popleft().result()
                waiting.extend(pool.submit(self._unpack, later) for later in numbers[index + ahead :][:1])
                yield from self._pieces(number, scratch)

    def _unpack(self, number: int) -> _Scratch:
        start = number * self.size
        below = options_of(self.layers, "file.")
        if below is None:
            top = self.layers[0]
            below = {"file.driver": top.format, "file.file.filename": top.path}
        length = min(self.size, self.virtual_size - start)
        source = ImageOpts.of({"driver": "raw", "offset": start, "size": length, **below})
        path = os.path.join(self.directory, str(number))
        argv = img_argv.convert(self.img.program, [source], path, output_format="raw", cache="unsafe")
        try:
            self.img._read(argv, [source], force_share=False, limits=self.img.long_limits)
        except CommandError as error:
            error.path = self.layers[0].path  # rather than all options of the source
            raise
        return _Scratch(path)

    def _pieces(self, number: int, scratch: _Scratch) -> Iterator[_Piece]:
        for start, end in _data_parts(scratch.fd):
            yield _Piece(number * self.size + start, end - start, scratch.fd, start, scratch)


def _data_parts(fd: int) -> Iterator[tuple[int, int]]:
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole is left
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE))
        yield at, end
        at = end


class _Work:
    """Hashes chunks on several threads; hashing and reading leave Python's lock to others."""

    def __init__(
        self,
        virtual_size: int,
        chunk: int,
        chunks: Iterator[_Chunk],
        extents: Sequence[Extent],
        progress: Progress | None,
    ) -> None:
        self.virtual_size = virtual_size
        self.chunk = chunk
        self.found: dict[int, bytes] = {}
        self._chunks = chunks
        self._batch = max(1, _BATCH * CHUNK // chunk)
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        self._progress = progress
        self._total = max(1, sum(extent.length for extent in extents if extent.data and not extent.zero))
        self._done = 0

    def run(self, threads: int) -> None:
        helpers = [threading.Thread(target=self._work, daemon=True) for _ in range(threads - 1)]
        for helper in helpers:
            helper.start()
        self._work()
        for helper in helpers:
            helper.join()
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        buffer = bytearray(self.chunk)
        try:
            while batch := self._take():
                self.found.update(_hashed(batch, buffer, self.virtual_size))
        except BaseException as error:
            self._failed = error

    def _take(self) -> list[_Chunk]:
        with self._lock:
            if self._failed is not None:
                return []
            batch = list(islice(self._chunks, self._batch))
            if self._progress is not None:
                self._progress(min(100.0, 100 * self._done / self._total))
                self._done += sum(piece.length for _, pieces in batch for piece in pieces)
            return batch


def _hashed(batch: Sequence[_Chunk], buffer: bytearray, virtual_size: int) -> Iterator[tuple[int, bytes]]:
    """(number, SHA-256) of the chunks that are not all zeros."""
    whole = memoryview(buffer)
    size = len(buffer)
    for number, pieces in batch:
        length = min(size, virtual_size - number * size)
        if length <= 0:
            continue
        if len(pieces) > 1 or pieces[0].length < length:
            buffer[:] = _ZEROS[:size]
        for piece in pieces:
            _fill(whole[piece.at : piece.at + piece.length], piece)
        here = buffer if length == size else buffer[:length]
        if here != _ZEROS[:length]:
            yield number, hashlib.sha256(here).digest()


def _fill(target: memoryview, piece: _Piece) -> None:
    """Reads the piece; what lies past the end of its file is zeros."""
    done = 0
    while done < piece.length:
        got = os.preadv(piece.fd, [target[done:]], piece.offset + done)
        if got == 0:
            target[done:] = bytes(piece.length - done)
            return
        done += got

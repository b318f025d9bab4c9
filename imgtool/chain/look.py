"""Looking at one file: one stat, one open, one read of its header. Never raises for what it finds there.

Only regular files and block devices are ever opened: a FIFO would block, a tape would rewind.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator

import msgspec

from imgtool.chain.findings import Finding, finding
from imgtool.chain.graph import Backing, BackingKind, DataFile, Image
from imgtool.errors import ImageFormatError
from imgtool.image.header import Header, HeaderReader, Qcow2Details
from imgtool.image.locks import lock_state
from imgtool.image.names import printable
from imgtool.image.reference import Reference, parse, parse_data_file
from imgtool.image.snapshot_table import read_snapshots

OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
"""O_NONBLOCK for the file that became a FIFO between stat and open."""

RAW_NAMES = (".raw", ".img", ".iso")
"""A file without any format's magic number is an image when its name ends so, or when an image names it."""

FORMAT_NAMES = (".qcow2", ".qcow", ".qed", ".vmdk", ".vdi", ".vhd", ".vpc", ".vhdx", ".luks")
"""Names that promise a format with a magic number."""

LOCAL_PROTOCOLS = frozenset(("file", "host_device", "host_cdrom"))
"""Protocols whose path is an image on this host, and not, say, a directory that vvfat makes one of."""

Notice = Callable[[Image, int, Header, os.stat_result], None]
"""Takes an image, the descriptor of its file, its header and what fstat says."""

Identity = int
"""Which file it is, whatever its name: device and inode, or a block device's own number, in one integer."""


def identity(status: os.stat_result) -> Identity:
    if stat.S_ISBLK(status.st_mode):
        return 1 << 128 | status.st_rdev
    return status.st_dev << 64 | status.st_ino


def tidy(path: str) -> str:
    """`path`, absolute, without `.`, double slashes and, where that names the same file, `..`. Where it would not,
    because a symlink stands before the `..`, the directory is spelt as it really is."""
    plain = os.path.normpath(path)
    if plain.startswith("//"):
        plain = plain[1:]
    if "/../" in path or path.endswith("/.."):
        try:
            real = os.path.realpath(os.path.dirname(path))
            if real != os.path.realpath(os.path.dirname(plain)):
                return os.path.join(real, os.path.basename(path))
        except (OSError, ValueError):
            return path
    return plain


_EXTENT = r"-(flat|delta|[fs]\d{3,})\.vmdk"
"""An extent of a VMDK: bytes of no format, and no image by itself."""


def is_image_name(name: str) -> bool:
    """Whether a file of no format's magic number counts as an image."""
    small = name.lower()
    return small.endswith((*RAW_NAMES, *FORMAT_NAMES)) and not (".vmdk" in small and re.search(_EXTENT, small))


class Looker:
    """Looks at files. Equal references from one directory share one `Backing`: a store of thousands of overlays has
    few bases."""

    def __init__(self, notice: Notice | None = None) -> None:
        """`notice` is called for each image whose header could be read, while its file is open."""
        self._backings: dict[tuple[str, bytes, str | None], Backing | ImageFormatError] = {}
        self._headers = HeaderReader()
        self._notice = notice

    def at(self, path: str, *, format: str | None = None) -> tuple[Image, Identity | None]:
        """The node for `path`, whatever is there, and which file it is; None where nothing could be opened."""
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            return _absent(path, error), None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            image = Image(path=path)
            image.add(finding("not-a-file", f"{printable(path)} is {_kind(status.st_mode)}"))
            return image, identity(status)
        try:
            fd = os.open(path, OPEN_FLAGS)
        except OSError as error:
            return _absent(path, error), identity(status)
        try:
            status = os.fstat(fd)
            return self.inside(fd, status, path, os.path.dirname(path), format=format), identity(status)
        finally:
            os.close(fd)

    def inside(
        self, fd: int, status: os.stat_result, path: str, directory: str, *, format: str | None = None
    ) -> Image:
        """The node for the file open at `fd`; `path` is how it was reached, `directory` the part of it before the
        last slash."""
        try:
            header = self._headers.read(fd, format=format)
        except ImageFormatError as error:
            image = Image(path=path, actual_size=status.st_blocks * 512, in_use=lock_state(fd))
            code = "unreadable" if isinstance(error.__cause__, OSError) else "malformed"
            image.add(finding(code, error.message))
            return image
        image = Image(
            path=path,
            format=header.format,
            virtual_size=header.virtual_size,
            actual_size=status.st_blocks * 512,
            in_use=lock_state(fd),
        )
        if header.backing is not None:
            self._note_backing(image, header, directory)
        if header.data_file is not None:
            _note_data_file(image, header.data_file, directory)
        elif isinstance(header.details, Qcow2Details) and header.details.external_data:
            image.add(finding("data-file-missing", "it has an external data file, but does not name it"))
        elif extents := getattr(header.details, "extents", ()):
            image.extents = tuple(tidy(os.path.join(directory, os.fsdecode(extent.name))) for extent in extents)
        if header.snapshots:
            try:
                image.snapshots = read_snapshots(fd, header)
            except ImageFormatError as error:
                image.add(finding("malformed", error.message))
        if self._notice is not None:
            self._notice(image, fd, header, status)
        return image

    def backing(self, name: bytes, format: str | None, directory: str) -> Backing:
        """What the backing name `name` means in `directory`. ImageFormatError when it means nothing."""
        key = (directory, name, format)
        known = self._backings.get(key)
        if known is None:
            try:
                known = _backing(parse(name, directory=directory), format)
            except ImageFormatError as error:
                known = error
            self._backings[key] = known
        if isinstance(known, ImageFormatError):
            raise known
        return known

    def tell_ambiguous(self, image: Image, name: str) -> None:
        """Notes it when the backing file of `image` is another one where the image is opened as `name`."""
        here = image.backing
        if here is None or here.path is None:
            return
        there = self.backing(os.fsencode(here.reference), here.format, os.path.dirname(name))
        if there.path is not None and there.path != here.path and not _same_file(there.path, here.path):
            image.add(
                finding(
                    "backing-ambiguous",
                    f"opened as {printable(name)}, the backing file is {printable(there.path)}; "
                    f"opened as {printable(image.path)}, it is {printable(here.path)}",
                )
            )

    def _note_backing(self, image: Image, header: Header, directory: str) -> None:
        assert header.backing is not None
        try:
            image.backing = self.backing(header.backing, header.backing_format, directory)
        except ImageFormatError as error:
            text = os.fsdecode(header.backing)
            image.backing = Backing(text, header.backing_format, _kind_of_text(text), None)
            image.add(finding("reference-malformed", f"backing file {printable(text)!r}: {error.message}"))
            return
        if image.backing.relative is True:
            image.add(_depends("backing file", image.backing.reference))
        if image.backing.format is None and image.backing.kind != "json":
            image.add(
                finding(
                    "backing-format-missing",
                    f"no format is named for the backing file {printable(image.backing.reference)}",
                )
            )


def _backing(reference: Reference, format: str | None) -> Backing:
    path = reference.path
    if reference.altered or reference.protocol not in LOCAL_PROTOCOLS:
        path = None
    files = tuple(files_of(reference)) if path is None else ()
    return Backing(
        reference=reference.text,
        format=format or reference.format,
        kind=reference.kind,
        path=None if path is None else tidy(path),
        relative=reference.relative or msgspec.UNSET,
        files=files or msgspec.UNSET,
    )


def files_of(reference: Reference) -> Iterator[str]:
    """The images on this host that opening `reference` opens."""
    for leaf in reference.leaves:
        if leaf.path is not None and leaf.protocol in LOCAL_PROTOCOLS and not leaf.role.endswith("config"):
            yield tidy(leaf.path)


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _note_data_file(image: Image, name: bytes, directory: str) -> None:
    text = os.fsdecode(name)
    try:
        reference = parse_data_file(name, directory=directory)
    except ImageFormatError as error:
        image.data_file = DataFile(text, _kind_of_text(text), None)
        image.add(finding("reference-malformed", f"data file {printable(text)!r}: {error.message}"))
        return
    found = _backing(reference, None)
    image.data_file = DataFile(found.reference, found.kind, found.path)
    if reference.relative:
        image.add(_depends("data file", found.reference))


def _depends(what: str, name: str) -> Finding:
    return finding(
        "depends-on-cwd",
        f"QEMU looks for the {what} {printable(name)} in the current directory; imgtool takes the one in the image's",
    )


def _kind_of_text(text: str) -> BackingKind:
    return "json" if text.startswith("json:") else "protocol"


def _absent(path: str, error: OSError | ValueError) -> Image:
    image = Image(path=path)
    if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENOTDIR):
        image.add(finding("missing", f"{printable(path)} does not exist"))
    else:
        reason = error.strerror if isinstance(error, OSError) else "no system has a file of that name"
        image.add(finding("unreadable", f"{printable(path)} cannot be opened: {reason}"))
    return image


def _kind(mode: int) -> str:
    for test, words in (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
    ):
        if test(mode):
            return words
    return "neither a file nor a block device"

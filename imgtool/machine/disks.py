"""What a machine's images are: their chains in the form the compiler takes, and whether this VM may have them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence

import msgspec

from imgtool.chain.anchors import refuse_changed
from imgtool.chain.graph import Image
from imgtool.chain.scan import check_format, scan
from imgtool.chain.truncation import refuse_truncated
from imgtool.chain.walk import guard
from imgtool.errors import ImageError, ImageInUseError, RefusedError
from imgtool.image.names import printable
from imgtool.image.users import users_of
from imgtool.machine.config import Machine
from imgtool.machine.host import Disk, Link
from imgtool.machine.vm import HeldImage, hold

_RAW_NAMES = (".raw", ".iso")
_SHOWN_CHILDREN = 3


class Use(msgspec.Struct, frozen=True):
    """A file a machine names, and what it does with it."""

    path: str
    format: str | None
    writes: bool


class Learned(msgspec.Struct, frozen=True):
    """What `learn_disks` found out."""

    disks: dict[str, Disk]
    """By the path the machine names."""
    held: tuple[HeldImage, ...]
    """Every file QEMU will open, for `imgtool.machine.runtime.claim`."""
    in_use: tuple[ImageInUseError, ...]
    """One for each image that another process has open so that this VM cannot: raised by the caller once the VM it
    belongs to, if any, has been looked for."""


def uses(machine: Machine) -> Iterator[Use]:
    """The images of `machine`, each as its drive uses it."""
    for name in ("fda", "fdb", "hda", "hdb", "hdc", "hdd"):
        path = getattr(machine, name)
        if path is not None:
            yield Use(path, None, not machine.ephemeral)
    if machine.cdrom is not None:
        yield Use(machine.cdrom, None, False)
    for drive in machine.drives:
        if drive.file is not None:
            thrown_away = drive.snapshot if drive.snapshot is not None else bool(machine.ephemeral)
            writes = not (thrown_away or drive.readonly or drive.media == "cdrom")
            yield Use(drive.file, drive.format, writes)


def learn_disks(wanted: Sequence[Use], *, force: bool = False) -> Learned:
    """Looks at each image and its chain, natively; nothing is opened that could hang.

    ImageError or ChainError when an image or its chain cannot be used, or the guest would write an image that cannot
    be written; RefusedError, which `force` overrides, when the guest would write an image that others stand on, or
    one whose format is in doubt, or read one whose parent is not what it was made on or whose end is missing.
    """
    disks: dict[str, Disk] = {}
    held: list[HeldImage] = []
    busy: list[ImageInUseError] = []
    for use in wanted:
        check_format(use.format)
        _check_address(use.path)
        chain = guard(use.path, format=use.format)
        _check_writable(use, chain[0])
        if not force:
            _check_format(use, chain[0])
            _check_children(use)
            refuse_changed(chain)
            refuse_truncated(chain)
        disks[use.path] = disk(chain)
        for depth, image in enumerate(chain):
            writes = use.writes and depth == 0
            held.extend(hold(path, writable=writes) for path in _files(image))
            if not force and (image.in_use == "write" or (writes and image.in_use == "read")):
                busy.append(_busy(image, use))
    return Learned(disks, tuple(held), tuple(busy))


def disk(chain: Sequence[Image]) -> Disk:
    """The chain as the compiler takes it. A parent that is no local file is left for QEMU to open by itself."""
    local = [image for image in chain if image.format is not None]
    return Disk(
        chain=tuple(_link(image) for image in local),
        size=chain[0].virtual_size,
        follow=len(local) < len(chain),
    )


def _link(image: Image) -> Link:
    assert image.format is not None
    data_file = None if image.data_file is msgspec.UNSET else image.data_file.path
    link = Link(path=image.path, format=image.format, data_file=data_file)
    if not stat.S_ISBLK(os.stat(image.path).st_mode):
        return link
    optical = os.path.basename(os.path.realpath(image.path)).startswith("sr")
    return msgspec.structs.replace(link, protocol="host_cdrom" if optical else "host_device")


def _files(image: Image) -> Iterator[str]:
    if image.format is not None:
        yield image.path
        if image.data_file is not msgspec.UNSET and image.data_file.path is not None:
            yield image.data_file.path


def _check_format(use: Use, image: Image) -> None:
    """A guest can write the header of another format onto its raw disk, and read the host's files with it at the next
    boot (CVE-2008-2004)."""
    if use.format is None and image.format not in ("raw", None) and use.path.lower().endswith(_RAW_NAMES):
        raise RefusedError(
            f"{printable(use.path)} is named as a raw image, but begins as a {image.format}",
            path=use.path,
            hint=f"say what it is: format=raw or format={image.format}",
        )


_ADDRESS = re.compile(r"/(fat|nbd|https?|ftps?|ssh|rbd|iscsi|nfs|gluster)(\+[a-z]+)?:")


def _check_address(path: str) -> None:
    """A name is a file. Who means what QEMU takes some names for is told so where there is no such file."""
    found = _ADDRESS.search(path)
    if found is None or os.path.lexists(path):
        return
    if found[1] == "fat":
        hint = "a folder of the host is in the guest by --share PATH; a name is always a file here"
    else:
        hint = f"a name is a file, no address: an overlay may have one as its backing file (--trust {found[1]})"
    raise ImageError(f"{printable(path)} does not exist", path=path, hint=hint)


def _check_writable(use: Use, image: Image) -> None:
    if not use.writes:
        return
    for path in _files(image):
        if not os.access(path, os.W_OK):
            fixed = os.statvfs(path).f_flag & os.ST_RDONLY
            why = "lies on a read-only file system" if fixed else "may not be written by you"
            raise ImageError(
                f"{printable(path)} {why}, and the guest is to write it",
                path=use.path,
                hint="--ephemeral, or --new-overlay PATH elsewhere, boots it without writing to it",
            )


def _check_children(use: Use) -> None:
    if not use.writes:
        return
    image = scan([use.path]).by_path().get(use.path)
    children = list(image.children) if image is not None else []
    if image is not None and image.data_file_of:
        raise RefusedError(
            f"{printable(use.path)} holds the data of {printable(image.data_file_of[0])}: a guest that writes it "
            "corrupts that one",
            path=use.path,
            hint="boot that one; --force writes to it anyway",
        )
    if not children:
        return
    named = ", ".join(printable(child) for child in children[:_SHOWN_CHILDREN])
    more = f" and {len(children) - _SHOWN_CHILDREN} more" if len(children) > _SHOWN_CHILDREN else ""
    raise RefusedError(
        f"{printable(use.path)} is the backing file of {named}{more}: a guest that writes it corrupts "
        f"{'it' if len(children) == 1 else 'them'}",
        path=use.path,
        hint="--new-overlay PATH or --ephemeral boots it without writing to it; --force writes to it anyway",
    )


def _busy(image: Image, use: Use) -> ImageInUseError:
    users = users_of(image.path)
    what = "the image" if image.path == use.path else f"its backing file {printable(image.path)}"
    how = "written" if image.in_use == "write" else "read"
    return ImageInUseError(
        f"{what} is being {how} by {users.names or 'another process'}",
        path=use.path,
        hint=users.ending
        + ("; --ephemeral or --new-overlay boots it without writing to it" if image.in_use == "read" else ""),
    )

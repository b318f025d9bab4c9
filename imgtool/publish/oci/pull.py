"""Images from a registry.

A layer is fetched into `.imgtool-sha256-….part` beside where it goes, which stays when the connection breaks, so that
the next pull goes on there. It gets its name when its bytes are those of its digest, its header names the parent as
it lies here, and the chain that it then is may be opened; the base first, so that each image that is there is whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from typing import Literal

import msgspec

from imgtool.chain.content import digest_of
from imgtool.chain.walk import guard
from imgtool.errors import ImageError, ImageExistsError, ImageFormatError, ImageNotFoundError, ImgtoolError
from imgtool.image.anchor import edited_head, take
from imgtool.image.header import read_header
from imgtool.image.names import PathLike, printable
from imgtool.image.names import absolute as absolute_path
from imgtool.operations.copying import copy_file
from imgtool.operations.overlay import reference_to, stem_of
from imgtool.operations.plan import Plan, Touched
from imgtool.publish.oci.connection import DEFAULT, Connection
from imgtool.publish.oci.errors import DigestError, RegistryError
from imgtool.publish.oci.files import allowed_mode, by_size, free_name, place, write_head
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.layers import is_layer, layer_blob, layer_name
from imgtool.publish.oci.parallel import Meter, each
from imgtool.publish.oci.reference import parse_reference
from imgtool.publish.oci.remote import look
from imgtool.publish.oci.transfer import download, downloading
from imgtool.publish.oci.values import LAYER, TITLE, ConfigLayer, Descriptor
from imgtool.qemu.qemu_img import QemuImg

Progress = Callable[[float], None]
LayerState = Literal["present", "copied", "fetched"]

_LONGEST_STEM = 64


class PulledLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One image of the chain, and where it came from."""

    path: str
    """The image's file here."""
    digest: str
    """Of the blob in the registry: `sha256:…`."""
    size: int
    """Bytes of the blob."""
    state: LayerState
    """present: it was there. copied: from another folder of this host. fetched: from the registry."""


class Pulled(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of a pull."""

    reference: str
    """What was pulled, by the name that was asked for."""
    digest: str
    """Of the manifest."""
    path: str
    """The topmost image's file here."""
    format: str
    """Its format, as QEMU calls it."""
    virtual_size: int
    """Bytes of its disk."""
    content_digest: str | None
    """What the registry says a guest reads."""
    recipe_digest: str | None
    """Of the recipe it was built by; None when the registry does not say."""
    layers: tuple[PulledLayer, ...]
    """The base first."""
    fetched_bytes: int
    """How many came from the registry."""


class _Item:
    """One layer and where it goes."""

    def __init__(self, layer: ConfigLayer, descriptor: Descriptor, path: str, parent: _Item | None) -> None:
        self.layer = layer
        self.size = descriptor.size
        self.descriptor = descriptor
        self.path = path
        self.parent = parent
        self.state: LayerState | None = None
        self.fd = -1

    @property
    def part(self) -> str:
        folder = os.path.dirname(self.path)
        return os.path.join(folder, f".imgtool-{self.layer.digest.replace(':', '-')[:48]}.part")


class PullRequest:
    """An image that may be pulled: the registry has it, and it was looked for what of it is there."""

    def __init__(
        self,
        reference: str,
        path: PathLike | None = None,
        *,
        stem: str | None = None,
        read_only: bool = False,
        deep: bool = False,
        connection: Connection = DEFAULT,
        known: Known | None = None,
    ) -> None:
        """See `pull`. `stem` is what the image is called in a directory, without its format."""
        self.reference = parse_reference(reference)
        self.read_only = read_only
        self.deep = deep
        self.connection = connection
        self.known = known or Known()
        self.path, self.folder = self._place(path)
        self.registry = connection.open(self.reference)
        self.remote = look(self.registry)
        if os.path.isdir(self.path) or path is None:
            stem = stem or self.reference.name.rpartition("/")[2]
            self.path = os.path.join(self.folder, f"{stem}.{self.remote.config.format}")
        self.items = self._items()

    @staticmethod
    def _place(path: PathLike | None) -> tuple[str, str]:
        given = absolute_path(path) if path is not None else os.getcwd()
        meant = path is not None and os.fsdecode(path).endswith("/")  # a name that ends so is a directory's
        folder = given if meant or os.path.isdir(given) else os.path.dirname(given)
        if not os.path.isdir(folder):
            raise ImageNotFoundError(
                f"{printable(given)} cannot be made", hint=f"there is no directory {printable(folder)}", path=given
            )
        return given, folder

    def _items(self) -> list[_Item]:
        """Where each layer goes, the base first; those that are there have the state `present`."""
        items: list[_Item] = []
        sizes = by_size(self.folder)
        for layer, descriptor in zip(self.remote.config.layers, self.remote.layers, strict=True):
            parent = items[-1] if items else None
            top = descriptor is self.remote.layers[-1]
            item = _Item(layer, descriptor, self.path if top else self._parent_path(descriptor), parent)
            candidates = [self.path] if top else [item.path, *sizes.get(descriptor.size, ())]
            for path in dict.fromkeys(candidates):
                if (path != self.path or top) and self._is_there(item, path):
                    item.path, item.state = path, "present"
                    break
            if item.state is None and os.path.lexists(item.path):
                if top:
                    raise ImageExistsError(
                        f"{printable(item.path)} already exists", hint="choose another name", path=item.path
                    )
                item.path = free_name(item.path)
            items.append(item)
        return items

    def _is_there(self, item: _Item, path: str) -> bool:
        """Whether the file at `path` is this layer, on the parent that was found."""
        if item.parent is not None and item.parent.state != "present":
            return False
        if not os.path.isfile(path) or not is_layer(path, item.layer, item.size, self.known):
            return False
        if item.parent is None:
            return True
        try:
            chain = guard(path, format=item.layer.format)
        except ImgtoolError:
            return False
        return os.path.samefile(chain[1].path, item.parent.path)

    def _parent_path(self, descriptor: Descriptor) -> str:
        title = descriptor.annotations.get(TITLE, "")
        stem = re.sub(r"[^A-Za-z0-9._+]+", "-", stem_of(title)).strip(".-")[:_LONGEST_STEM]
        stem = re.sub(r"(-[0-9a-f]{12})+\Z", "", stem) or "layer"
        short = descriptor.digest.partition(":")[2][:12]
        format = descriptor.media_type.removeprefix(LAYER)
        return os.path.join(self.folder, f"{stem}-{short}.{format}")

    def plan(self) -> Plan:
        images = tuple(
            Touched(path=item.path, action="read")
            if item.state == "present"
            else Touched(path=item.path, action="create", bytes=item.size)
            for item in self.items
        )
        return Plan(commands=(), images=images, notes=(f"{self.reference} is {self.remote.digest}",))

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Pulled:
        """Fetches what is missing, and gives it its name."""
        missing = [item for item in self.items if item.state is None]
        meter = Meter(sum(item.size for item in missing), progress)
        with contextlib.ExitStack() as stack:
            for item in missing:
                item.fd = stack.enter_context(downloading(item.part))
            each(
                lambda item: self._obtain(item, meter),
                missing,
                jobs=self.connection.jobs,
                halted=self.registry.transport.halted,
            )
            for item in missing:
                self._settle(item, qemu_img)
        config = self.remote.config
        return Pulled(
            reference=str(self.reference),
            digest=self.remote.digest,
            path=self.path,
            format=config.format,
            virtual_size=config.virtual_size,
            content_digest=config.content_digest,
            recipe_digest=config.recipe_digest,
            layers=tuple(
                PulledLayer(path=item.path, digest=item.layer.digest, size=item.size, state=item.state or "present")
                for item in self.items
            ),
            fetched_bytes=sum(item.size for item in missing if item.state == "fetched"),
        )

    def _obtain(self, item: _Item, meter: Meter) -> None:
        """Makes the part the layer: it may be all there, another folder may have it, else it is fetched."""
        if self._is_finished(item):
            item.state = "fetched"
            meter.add(item.size)
        elif self._copied(item):
            item.state = "copied"
            meter.add(item.size)
        else:
            try:
                download(self.registry, item.descriptor, item.fd, meter.add)
            except ImageError as error:
                raise ImageError(
                    f"{printable(item.path)}: {error.message}",
                    hint="make room and run it again: it resumes where it stopped",
                    path=item.path,
                ) from error
            item.state = "fetched"

    @staticmethod
    def _is_finished(item: _Item) -> bool:
        """Whether the part is the whole layer; a pull that was stopped may have given it its parent's name."""
        if os.fstat(item.fd).st_size != item.size:
            return False
        try:
            header = read_header(item.fd, format=item.layer.format)
            blob = layer_blob(item.fd, header, item.layer.parent)
            if blob.digest() != item.layer.digest:
                return False
        except (ImageFormatError, AssertionError):
            return False
        write_head(item.fd, blob.read(0, 1 << 21))
        return True

    def _copied(self, item: _Item) -> bool:
        """Whether a file elsewhere on this host is the layer, and the part now a copy of it."""
        if os.fstat(item.fd).st_size:
            return False  # fetching has begun
        for path in self.known.places(item.layer.digest):
            if not os.path.isfile(path) or not is_layer(path, item.layer, item.size, self.known):
                continue
            with contextlib.suppress(OSError):
                source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    copy_file(source, item.fd)
                finally:
                    os.close(source)
                if self._is_finished(item):
                    os.fsync(item.fd)
                    return True
            os.ftruncate(item.fd, 0)
        return False

    def _settle(self, item: _Item, qemu_img: QemuImg) -> None:
        """Gives the layer its parent's name and then its own."""
        self._check_header(item)
        if item.parent is not None:
            self._relink(item, item.parent)
        os.fchmod(item.fd, allowed_mode(0o444 if self.read_only or item.path != self.path else 0o666))
        os.fsync(item.fd)
        guard(item.part, format=item.layer.format)
        if self.deep and item is self.items[-1] and self.remote.config.content_digest is not None:
            found = digest_of(item.part, format=item.layer.format, qemu_img=qemu_img)
            if found != self.remote.config.content_digest:
                raise DigestError(
                    f"a guest would read another disk than {self.reference} says: {found}, not "
                    f"{self.remote.config.content_digest}"
                )
        place(item.part, item.path)
        self.known.note(item.path, os.stat(item.path), item.layer.digest, item.layer.parent)
        self.known.note_repository(item.layer.digest, self.reference.repository)

    def _check_header(self, item: _Item) -> None:
        """RegistryError when the layer is not what the config says it is, or refers to anything but its parent."""
        layer = item.layer
        try:
            header = read_header(item.fd, format=layer.format)
        except ImageFormatError as error:
            raise RegistryError(f"the layer {layer.digest} of {self.reference}: {error.message}") from error
        expected = None if layer.parent is None else layer_name(layer.parent)
        format = None if item.parent is None else item.parent.layer.format
        details = header.details
        if (
            (header.backing, header.backing_format) != (expected, format)
            or header.virtual_size != layer.virtual_size
            or header.data_file is not None
            or getattr(details, "external_data", False)
            or getattr(details, "extents", ())
        ):
            raise RegistryError(
                f"the layer {layer.digest} of {self.reference} is not what the image says of it",
                hint="it was not made by `imgtool push`: do not use it",
            )

    @staticmethod
    def _relink(item: _Item, parent: _Item) -> None:
        reference = os.fsencode(reference_to(parent.path, os.path.dirname(item.path)))
        backing = (reference, parent.layer.format)
        fd = os.open(parent.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            anchor = take(
                fd,
                reference,
                read_header(fd, format=parent.layer.format),
                directory=os.path.dirname(parent.path),
                content=parent.layer.content_digest,
            )
        finally:
            os.close(fd)
        try:
            head = edited_head(item.fd, anchor=anchor, backing=backing)
        except ImageFormatError:
            head = edited_head(item.fd, anchor=None, backing=backing)
        write_head(item.fd, head)


def pull(
    reference: str,
    path: PathLike | None = None,
    *,
    read_only: bool = False,
    deep: bool = False,
    connection: Connection = DEFAULT,
    qemu_img: QemuImg | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Pulls the image that `reference` names to `path`: a file, or a directory, in which it is named after its
    repository; None is the current directory. The images it stands on go beside it, read-only, under names of their
    own; those that are there already, under any name, are used, and those that lie elsewhere on this host are copied.

    With `read_only` the image is read-only too; with `deep` the whole chain is read and compared with the content
    digest that the registry has. ImageExistsError when another file is at `path`; DigestError when the registry sends
    other bytes than it should; RegistryError when it cannot be reached: another call resumes where this one stopped.
    """
    request = PullRequest(reference, path, read_only=read_only, deep=deep, connection=connection)
    return request.make(qemu_img or QemuImg(), progress=progress)

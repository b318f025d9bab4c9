"""The layers of builds in a registry: each under its key as the tag, so that machines build what nobody built before.

What a build layer is comes from those who make it: its overlay, the files beside it, and a document that says all of
it. The overlay is a layer as in `imgtool.publish.oci`, but what it stands on is named by the key of the build layer
beneath, or by the content digest of the base, which need not be in the registry.

| what | media type |
| --- | --- |
| config | `application/vnd.imgtool.build-layer.v1+json`, a `CachedLayer` |
| the overlay | `application/vnd.imgtool.layer.v1.qcow2` |
| the files beside it | `application/vnd.imgtool.build-files.v1.tar` |

Whoever may push to the repository says what a recipe's step comes to: it is a cache of yours, not of strangers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec

from imgtool.errors import ImageError, ImageFormatError, UsageError
from imgtool.image.header import read_header
from imgtool.image.names import printable
from imgtool.publish.archive import archive_of, unpack
from imgtool.publish.oci.connection import DEFAULT, Connection
from imgtool.publish.oci.errors import DigestError, RegistryError, RegistryNotFoundError
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.layers import layer_blob, layer_name
from imgtool.publish.oci.parallel import Meter
from imgtool.publish.oci.push import publish
from imgtool.publish.oci.reference import parse_reference
from imgtool.publish.oci.transfer import download, downloading
from imgtool.publish.oci.values import LAYER, Descriptor, checked_manifest, decode, describe

CONFIG = "application/vnd.imgtool.build-layer.v1+json"
FILES = "application/vnd.imgtool.build-files.v1.tar"
IMAGE = f"{LAYER}qcow2"

Progress = Callable[[float], None]


class CachedLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    schema: Literal[1] = 1
    key: str
    below: str
    """What the overlay names: the key of the layer beneath, or the hexadecimal digits of the content of the base."""
    content: str
    """What a guest reads of it: `imgtool1:…`."""
    virtual_size: int
    document: dict[str, Any]
    """What the builder wants to know of it again."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A build layer in a registry."""

    layer: CachedLayer
    image: Descriptor
    files: Descriptor

    @property
    def below(self) -> str:
        return self.layer.below

    @property
    def content(self) -> str:
        return self.layer.content

    @property
    def document(self) -> dict[str, Any]:
        return self.layer.document

    @property
    def size(self) -> int:
        """Bytes that are to be fetched."""
        return self.image.size + self.files.size


class LayerCache:
    """A repository of a registry (`HOST[:PORT]/NAME`) that keeps layers for other machines: the `cache_from` and
    `cache_to` of `build_image`.

    UsageError when the name is not that of a repository. Its methods raise RegistryError when the registry cannot be
    reached, or holds something other than it claims to.
    """

    def __init__(self, repository: str, *, connection: Connection = DEFAULT) -> None:
        """`repository` has no tag; `connection` says how its registry is reached. Nothing is sent yet."""
        self.reference = parse_reference(repository)
        if self.reference.digest is not None or ":" in repository.rpartition("/")[2]:
            raise UsageError("a repository has no tag here: layers go under their keys", hint="HOST[:PORT]/NAME")
        self.connection = connection

    @property
    def name(self) -> str:
        """`HOST[:PORT]/NAME`"""
        return self.reference.repository

    def find(self, key: str) -> Found | None:
        """The build layer of this key; None when the repository has none."""
        reference = self.reference._replace(tag=key, digest=None)
        registry = self.connection.open(reference)
        try:
            content, _, _ = registry.manifest(key)
        except RegistryNotFoundError:
            return None
        manifest = checked_manifest(content, f"the manifest of {reference}")
        kinds = tuple(descriptor.media_type for descriptor in manifest.layers)
        if manifest.config.media_type != CONFIG or kinds != (IMAGE, FILES):
            raise RegistryError(f"{reference} is no layer of a build")
        layer = decode(registry.document(manifest.config), CachedLayer, f"the config of {reference}")
        if layer.key != key:
            raise RegistryError(f"{reference} is the layer of another key")
        return Found(layer=layer, image=manifest.layers[0], files=manifest.layers[1])

    def fetch(
        self,
        item: Found,
        folder: str,
        image: str,
        *,
        scratch: str,
        files: Sequence[str],
        progress: Progress | None = None,
    ) -> None:
        """Fetches the overlay to the file `image` in `folder`, and those of its companions that `files` names into
        that folder. What was fetched in part stays in `scratch` for the next attempt.

        DigestError when the bytes are not those that were announced; RegistryError when the overlay is not what its
        record says.
        """
        registry = self.connection.open(self.reference._replace(tag=item.layer.key, digest=None))
        parts = [_part(scratch, one) for one in (item.image, item.files)]
        meter = Meter(item.size, progress)
        with downloading(parts[0]) as overlay, downloading(parts[1]) as archive:
            try:
                download(registry, item.image, overlay, meter.add)
                download(registry, item.files, archive, meter.add)
            except ImageError as error:
                raise ImageError(
                    f"{printable(scratch)}: {error.message}",
                    hint="make room and run it again: it resumes where it stopped",
                    path=scratch,
                ) from error
            _check(overlay, item.layer)
            unpack(parts[1], folder, list(files))
            os.unlink(parts[1])
            os.rename(parts[0], os.path.join(folder, image))

    def push(
        self,
        key: str,
        image: str,
        *,
        below: str,
        content: str,
        virtual_size: int,
        document: dict[str, Any],
        files: Sequence[str],
        progress: Progress | None = None,
    ) -> int:
        """Pushes the overlay `image`, and those of `files` that lie beside it, under `key`. Returns how many bytes
        were sent."""
        layer = CachedLayer(key=key, below=below, content=content, virtual_size=virtual_size, document=document)
        registry = self.connection.open(self.reference._replace(tag=key, digest=None))
        with contextlib.ExitStack() as stack:
            fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            parts = (
                (IMAGE, layer_blob(fd, read_header(fd, format="qcow2"), f"sha256:{below}")),
                (FILES, archive_of(stack, os.path.dirname(image), list(files))),
            )
            meter = Meter(2 * sum(blob.size for _, blob in parts), progress)  # they are digested, then sent
            blobs = [
                (Descriptor(media_type=kind, digest=blob.digest(meter.add), size=blob.size), blob)
                for kind, blob in parts
            ]
            described = describe(layer, CONFIG)
            _, states = publish(
                registry,
                blobs,
                (described[1], described[0]),
                annotations={},
                known=Known(),
                jobs=self.connection.jobs,
                meter=meter,
            )
        return sum(blob.size for descriptor, blob in blobs if states[descriptor.digest] == "uploaded")


def _part(scratch: str, descriptor: Descriptor) -> str:
    return os.path.join(scratch, f".imgtool-{descriptor.digest.replace(':', '-')[:48]}.part")


def _check(overlay: int, layer: CachedLayer) -> None:
    """That the overlay open there is the one that `layer` describes, and reads nothing but that and what it stands
    on."""
    try:
        header = read_header(overlay, format="qcow2")
    except ImageFormatError as error:
        raise RegistryError(f"the layer {layer.key}: {error.message}") from error
    if (
        header.backing != layer_name(layer.below)
        or header.virtual_size != layer.virtual_size
        or header.data_file is not None
        or getattr(header.details, "external_data", False)
    ):
        raise DigestError(f"the overlay of the layer {layer.key} is not what its record says")

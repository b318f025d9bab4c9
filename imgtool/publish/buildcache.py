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
from typing import Any, Literal

import msgspec

from imgtool.errors import ImageFormatError
from imgtool.image.header import read_header
from imgtool.publish.archive import archive_of
from imgtool.publish.oci.connection import Connection
from imgtool.publish.oci.errors import DigestError, RegistryError, RegistryNotFoundError
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.layers import layer_blob, layer_name
from imgtool.publish.oci.parallel import Meter
from imgtool.publish.oci.push import publish
from imgtool.publish.oci.reference import Reference
from imgtool.publish.oci.transfer import download
from imgtool.publish.oci.values import LAYER, Descriptor, checked_manifest, decode, describe

CONFIG = "application/vnd.imgtool.build-layer.v1+json"
FILES = "application/vnd.imgtool.build-files.v1.tar"
IMAGE = f"{LAYER}qcow2"


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


def find(repository: Reference, key: str, connection: Connection) -> Found | None:
    """The build layer of this key; None when the repository has none. RegistryError when what it has is no such."""
    reference = repository._replace(tag=key, digest=None)
    registry = connection.open(reference)
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


def push_layer(
    repository: Reference,
    layer: CachedLayer,
    image: str,
    folder: str,
    files: list[str],
    *,
    connection: Connection,
    known: Known | None = None,
) -> int:
    """Pushes the overlay `image` and what is there of `files` in `folder`. Returns the bytes that were sent."""
    known = known or Known()
    registry = connection.open(repository._replace(tag=layer.key, digest=None))
    with contextlib.ExitStack() as stack:
        fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        blobs = []
        header = read_header(fd, format="qcow2")
        for kind, blob in (
            (IMAGE, layer_blob(fd, header, f"sha256:{layer.below}")),
            (FILES, archive_of(stack, folder, files)),
        ):
            blobs.append((Descriptor(media_type=kind, digest=blob.digest(), size=blob.size), blob))
        content, described = describe(layer, CONFIG)
        _, states = publish(
            registry,
            blobs,
            (described, content),
            annotations={},
            known=known,
            jobs=connection.jobs,
            meter=Meter(0, None),
        )
        return sum(blob.size for descriptor, blob in blobs if states[descriptor.digest] == "uploaded")


def fetch_layer(repository: Reference, found: Found, image: int, files: int, connection: Connection) -> None:
    """Fetches the overlay and the archive of a build layer into the files open at `image` and `files`.

    DigestError when they are not those; RegistryError when the overlay is not what is said of it."""
    registry = connection.open(repository._replace(tag=found.layer.key, digest=None))
    download(registry, found.image, image, lambda _: None)
    download(registry, found.files, files, lambda _: None)
    try:
        header = read_header(image, format="qcow2")
    except ImageFormatError as error:
        raise RegistryError(f"the layer {found.layer.key}: {error.message}") from error
    if (
        header.backing != layer_name(found.layer.below)
        or header.virtual_size != found.layer.virtual_size
        or header.data_file is not None
        or getattr(header.details, "external_data", False)
    ):
        raise DigestError(f"the overlay of the layer {found.layer.key} is not what is said of it")

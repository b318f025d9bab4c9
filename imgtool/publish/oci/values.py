"""The documents that are exchanged with registries, and their media types.

Source: the OCI image specification, manifest.md and descriptor.md.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypeVar

import msgspec

from imgtool.publish.oci.errors import RegistryError
from imgtool.publish.oci.reference import is_digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
ARTIFACT = "application/vnd.imgtool.image.v1"
"""What a manifest says it is, whose config is as every client of registries reads it."""
FORMER_CONFIG = "application/vnd.imgtool.image.v1+json"
"""Of images pushed when their config was a `Config` and nothing around it. They are pulled as well."""
LAYER = "application/vnd.imgtool.layer.v1."
"""Before QEMU's name of the layer's format."""

FORMAT = "io.imgtool.format"
VIRTUAL_SIZE = "io.imgtool.virtual-size"
CONTENT_DIGEST = "io.imgtool.content-digest"
PARENT_DIGEST = "io.imgtool.parent-digest"
RECIPE_DIGEST = "io.imgtool.recipe-digest"
TITLE = "org.opencontainers.image.title"

MAX_DOCUMENT = 4 << 20
"""Bytes of a manifest or config; what registries take at least."""

T = TypeVar("T")


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A blob: what it is, its digest, its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    schema_version: Literal[2]
    media_type: str | None = None
    artifact_type: str | None = None
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class ConfigLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """One image of the chain."""

    digest: str
    """Of its blob: `sha256:…`."""
    format: str
    """As QEMU calls it."""
    virtual_size: int
    """Bytes of its disk."""
    parent: str | None = None
    """The digest of the layer beneath; None at the base."""
    content_digest: str | None = None
    """The digest of what a guest reads of it; None when that is not known."""


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", omit_defaults=True):
    """What an image in a registry is; the same for the same image, whoever pushes it from wherever."""

    schema: Literal[1]
    """The version of this document."""
    format: str
    """Of the topmost image, as QEMU calls it."""
    virtual_size: int
    """Bytes of the disk."""
    layers: tuple[ConfigLayer, ...]
    """The base first."""
    content_digest: str | None = None
    """The digest of what a guest reads; None when that is not known."""
    recipe_digest: str | None = None
    """Of the recipe it was built by; None for another image."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What imgtool reads of an image's config."""

    image: Config | None = msgspec.field(name="io.imgtool.image", default=None)
    """None in a container's: imgtool did not push it."""


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    labels: dict[str, str] = msgspec.field(name="Labels")
    """What `skopeo inspect` shows."""


class Rootfs(msgspec.Struct, frozen=True, kw_only=True, tag="layers"):
    diff_ids: tuple[str, ...]
    """The digests of the layers, which nothing compresses."""


class ImageConfig(Told, frozen=True, kw_only=True):
    """A config as OCI's image specification (config.md) wants it, so that every client of registries can read it;
    what it does not know it has to pass over. A disk is of no architecture that imgtool knows of."""

    architecture: Literal["unknown"] = "unknown"
    os: Literal["unknown"] = "unknown"
    config: Labels
    rootfs: Rootfs


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def encode(value: object) -> bytes:
    """The one JSON text that a document is: keys sorted, no blanks."""
    return msgspec.json.encode(value, order="deterministic")


def describe(value: object, media_type: str) -> tuple[bytes, Descriptor]:
    """A document's bytes and their descriptor."""
    content = encode(value)
    return content, Descriptor(media_type=media_type, digest=digest_of(content), size=len(content))


def decode(content: bytes, kind: type[T], what: str) -> T:
    """The document that `content` is. RegistryError when it is none of that kind."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError(f"{what} cannot be understood: {error}", hint="was it pushed by imgtool?") from error


def checked_manifest(content: bytes, what: str) -> Manifest:
    """The manifest that `content` is, its descriptors looked at. RegistryError when it is none."""
    manifest = decode(content, Manifest, what)
    for descriptor in (manifest.config, *manifest.layers):
        if not is_digest(descriptor.digest) or descriptor.size < 0:
            raise RegistryError(f"{what} names a blob without a SHA-256 digest or a size")
    return manifest

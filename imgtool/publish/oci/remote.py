"""Images in a registry, before anything of them is fetched: manifest and config, and whether these make sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from imgtool.chain.link import MAX_DEPTH
from imgtool.image.formats import FORMATS
from imgtool.image.names import printable
from imgtool.publish.oci.errors import RegistryError, RegistryNotFoundError
from imgtool.publish.oci.registry import Registry
from imgtool.publish.oci.values import (
    FORMER_CONFIG,
    IMAGE_CONFIG,
    LAYER,
    MANIFEST,
    Config,
    ConfigLayer,
    Descriptor,
    Manifest,
    Told,
    checked_manifest,
    decode,
)

_SHOWN = 8
"""Tags that are named to a user who asked for another."""


class Remote(NamedTuple):
    """An image in a registry, its documents looked at."""

    digest: str
    config: Config
    layers: tuple[Descriptor, ...]


def look(registry: Registry) -> Remote:
    """The image that the registry's reference names. RegistryError when it is none."""
    reference = registry.reference
    try:
        content, media_type, digest = registry.manifest(reference.version)
    except RegistryNotFoundError as error:
        error.hint = _what_there_is(registry)
        raise
    what = f"the manifest of {reference}"
    if media_type not in (MANIFEST, ""):
        raise RegistryError(f"{reference} is no image of imgtool's but a {printable(media_type)}")
    manifest = checked_manifest(content, what)
    config = _config(registry, manifest)
    wrong = _wrong(config, manifest.layers)
    if wrong is not None:
        raise RegistryError(f"{reference} contradicts itself: {wrong}")
    return Remote(digest, config, manifest.layers)


def _what_there_is(registry: Registry) -> str | None:
    """What a repository has instead of an image that is not there; None when it does not say."""
    reference = registry.reference
    try:
        tags = registry.tags()
    except RegistryNotFoundError:
        return f"nothing is there as {reference.repository}: is the name right, and was it pushed?"
    except RegistryError:
        return None
    if len(tags) <= _SHOWN:
        return f"{reference.repository} has {'the tags ' + ', '.join(tags) if tags else 'no tags'}"
    import difflib

    near = difflib.get_close_matches(reference.tag or "", tags, n=_SHOWN, cutoff=0)
    return f"{reference.repository} has other tags, such as {', '.join(near)}"


def _config(registry: Registry, manifest: Manifest) -> Config:
    """What the image's config says of it. RegistryError when that is no image of imgtool's."""
    reference = registry.reference
    kind = manifest.config.media_type
    what = f"the config of {reference}"
    if kind == FORMER_CONFIG:
        return decode(registry.document(manifest.config), Config, what)
    if kind == IMAGE_CONFIG:
        told = decode(registry.document(manifest.config), Told, what)
        if told.image is not None:
            return told.image
    raise RegistryError(
        f"{reference} is no image of imgtool's: its config is a {printable(kind)}"
        f"{' of a container' if kind == IMAGE_CONFIG else ''}",
        hint="`imgtool push` makes such images; others can be fetched with skopeo or oras",
    )


def _wrong(config: Config, layers: Sequence[Descriptor]) -> str | None:
    """What does not fit in an image's documents."""
    if not layers or [layer.digest for layer in layers] != [layer.digest for layer in config.layers]:
        return "its manifest and its config name other layers"
    if len(layers) > MAX_DEPTH:
        return f"it has {len(layers)} layers, more than a chain may have"
    below: ConfigLayer | None = None
    for layer, descriptor in zip(config.layers, layers, strict=True):
        if layer.format not in FORMATS or descriptor.media_type != f"{LAYER}{layer.format}":
            return f"a layer is a {printable(descriptor.media_type)}"
        if layer.parent != (below.digest if below else None):
            return "a layer stands on another than the one beneath it"
        if below is not None and layer.format != "qcow2":
            return f"an overlay is a {layer.format}"
        below = layer
    assert below is not None
    if (below.format, below.virtual_size) != (config.format, config.virtual_size):
        return "its topmost layer is of another format or size than it"
    return None

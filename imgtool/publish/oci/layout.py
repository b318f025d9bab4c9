"""OCI layouts: what a registry has of an image, as a folder.

Source: the OCI image specification, image-layout.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from imgtool.errors import ImageError
from imgtool.image.names import printable
from imgtool.publish.oci.blob import Blob
from imgtool.publish.oci.values import INDEX, MANIFEST, Descriptor, Manifest, describe, encode
from imgtool.qemu.replace import replacing

_REFERENCE = "org.opencontainers.image.ref.name"


def write_layout(
    folder: str,
    tag: str,
    layers: Sequence[tuple[Descriptor, Blob]],
    config: tuple[Descriptor, bytes],
    *,
    annotations: Mapping[str, str],
    count: Callable[[int], None] = lambda _: None,
) -> str:
    """Writes an image into the layout in `folder`, made when there is none, where `tag` names it from then on.
    Returns the manifest's digest. Blobs that are there are not written again. ImageError when the folder cannot be
    used, or is something else."""
    blobs = os.path.join(folder, "blobs", "sha256")
    index = _read_index(folder)
    try:
        os.makedirs(blobs, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{printable(folder)} cannot be made: {error.strerror}", path=folder) from error
    described, content = config
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST,
        config=described,
        layers=tuple(descriptor for descriptor, _ in layers),
        annotations=dict(annotations),
    )
    document, top = describe(manifest, MANIFEST)
    for descriptor, blob in (*layers, (described, Blob(content)), (top, Blob(document))):
        _write(os.path.join(blobs, descriptor.digest.partition(":")[2]), blob, count)
    others = [entry for entry in index if entry.get("annotations", {}).get(_REFERENCE) != tag]
    entry = {**msgspec.to_builtins(top), "annotations": {_REFERENCE: tag}}
    _write(os.path.join(folder, "oci-layout"), Blob(encode({"imageLayoutVersion": "1.0.0"})), count)
    listed = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*others, entry]}
    _write(os.path.join(folder, "index.json"), Blob(encode(listed)), count, overwrite=True)
    return top.digest


def _read_index(folder: str) -> list[dict[str, Any]]:
    """The images of the layout in `folder`, none where there is no folder or an empty one."""
    try:
        names = os.listdir(folder)
        if not names:
            return []
        with open(os.path.join(folder, "index.json"), "rb") as file:
            found = msgspec.json.decode(file.read())["manifests"]
        if not all(isinstance(entry, dict) for entry in found):
            raise TypeError
    except FileNotFoundError as error:
        if os.path.isdir(folder):
            raise _no_layout(folder) from error
        return []
    except (OSError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise _no_layout(folder) from error
    return list(found)


def _no_layout(folder: str) -> ImageError:
    return ImageError(
        f"{printable(folder)} is there, and no OCI layout", hint="name a new folder, or a layout", path=folder
    )


def _write(path: str, blob: Blob, count: Callable[[int], None], *, overwrite: bool = False) -> None:
    """A blob's name is its digest: one that is there whole is it."""
    if not overwrite and os.path.exists(path) and os.path.getsize(path) == blob.size:
        return
    with replacing(path, overwrite=True) as hidden, open(hidden, "r+b") as file:
        for piece in blob.pieces():
            file.write(piece)
            count(len(piece))

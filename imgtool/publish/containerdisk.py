"""KubeVirt's containerDisk: a disk as an OCI image that holds one file, `/disk/disk.qcow2` or `/disk/disk.img`.

The file is QEMU's (owner 107:107, mode 0440), and the disk stands on nothing. The tar archive that is its one layer
says nothing of when or where it was made, so that the same disk is the same layer.
Source: KubeVirt's user guide, "containerDisk"; the OCI image specification, layer.md and config.md.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec

from imgtool.chain.anchors import refuse_changed
from imgtool.chain.content import digest_of
from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.walk import guard
from imgtool.errors import UsageError
from imgtool.image.manifest import provenance_of
from imgtool.image.names import PathLike
from imgtool.image.names import absolute as absolute_path
from imgtool.operations.plan import Plan, Touched
from imgtool.publish.archive import archive, file_entry, folder_entry
from imgtool.publish.oci.blob import Blob
from imgtool.publish.oci.connection import DEFAULT, Connection
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.layers import refuse_damaged
from imgtool.publish.oci.layout import write_layout
from imgtool.publish.oci.parallel import Meter
from imgtool.publish.oci.push import flattened, publish, scratch
from imgtool.publish.oci.reference import DEFAULT_TAG, parse_reference
from imgtool.publish.oci.values import CONTENT_DIGEST, FORMAT, IMAGE_CONFIG, VIRTUAL_SIZE, Descriptor, describe
from imgtool.publish.serve import local_layers
from imgtool.qemu import img_argv
from imgtool.qemu.extents import open_as
from imgtool.qemu.qemu_img import QemuImg

QEMU = 107
"""The user and group that QEMU is in KubeVirt's pods."""

LAYER = "application/vnd.oci.image.layer.v1.tar"

DiskFormat = Literal["qcow2", "raw"]
NAMES: dict[str, str] = {"qcow2": "disk.qcow2", "raw": "disk.img"}

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "s390x": "s390x",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
}
"""Python's names of machines → Go's, which OCI uses."""


class Exported(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of an export."""

    path: str
    """The image that was exported."""
    reference: str | None
    """Where it was pushed to."""
    layout: str | None
    """The folder it was written to."""
    digest: str
    """Of the manifest."""
    disk: str
    """The file in the image."""
    format: str
    """Of the disk in the container image, as QEMU calls it."""
    virtual_size: int
    """Bytes of the disk."""
    size: int
    """Bytes of the layer."""
    content_digest: str
    """The digest of what a guest reads."""


def disk_layer(fd: int, size: int, name: str) -> Blob:
    """A tar archive of the file open at `fd`, as `/disk/NAME`."""
    file = file_entry(f"disk/{name}", size, mode=0o440, owner=QEMU)
    return archive((folder_entry("disk", owner=QEMU), None), (file, fd))


def image_config(layer_digest: str, architecture: str) -> dict[str, object]:
    """What a container runtime is told of the image."""
    return {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created_by": "imgtool export containerdisk"}],
    }


class ContainerDiskRequest:
    """An image that may be exported: it was looked at and allowed, nothing was made."""

    def __init__(
        self,
        image: PathLike,
        reference: str | None = None,
        *,
        layout: PathLike | None = None,
        tag: str | None = None,
        format: str | None = None,
        disk_format: DiskFormat = "qcow2",
        compress: bool = False,
        architecture: str | None = None,
        annotations: Mapping[str, str] | None = None,
        force: bool = False,
        connection: Connection = DEFAULT,
        known: Known | None = None,
    ) -> None:
        """See `export_containerdisk`."""
        if (reference is None) == (layout is None):
            raise UsageError("a containerDisk goes to a registry or into a folder", hint="REF, or --layout DIR")
        if tag is not None and layout is None:
            raise UsageError("--tag is for --layout", hint="a reference has its own: HOST[:PORT]/NAME:TAG")
        if compress and disk_format != "qcow2":
            raise UsageError("only a qcow2 can be compressed")
        self.path = absolute_path(image)
        self.reference = None if reference is None else parse_reference(reference)
        if self.reference is not None and self.reference.digest is not None:
            raise UsageError(f"{reference} names a digest, which an image gets by being pushed", hint="name a tag")
        self.layout = None if layout is None else absolute_path(layout)
        self.tag = tag or DEFAULT_TAG
        self.chain: Sequence[Image] = guard(self.path, format=format)
        self.notes = refuse_changed(self.chain, force=force)
        refuse_encrypted(self.chain)
        self.force = force
        self.disk_format = disk_format
        self.compress = compress
        self.architecture = architecture or _ARCHITECTURES.get(platform.machine(), platform.machine())
        self.annotations = dict(annotations or {})
        self.connection = connection
        self.known = known or Known()

    def plan(self, program: str) -> Plan:
        source, format = open_as(local_layers(self.chain))
        argv = img_argv.convert(
            program,
            [source],
            os.path.join(scratch(), f"image.{self.disk_format}"),
            output_format=self.disk_format,
            format=format,
            compressed=self.compress,
            cache="unsafe",
        )
        images = [Touched(path=node.path, action="read", bytes=node.actual_size) for node in self.chain]
        if self.layout is not None:
            images.append(Touched(path=self.layout, action="create"))
        where = self.layout if self.reference is None else self.reference
        note = f"/disk/{NAMES[self.disk_format]} of {where}, owner {QEMU}:{QEMU}, mode 0440"
        return Plan(commands=(tuple(argv),), images=tuple(images), notes=(*self.notes, note))

    def make(self, qemu_img: QemuImg, *, progress: Callable[[float], None] | None = None) -> Exported:
        if not self.force:
            refuse_damaged(self.chain, qemu_img)
        with contextlib.ExitStack() as stack:
            chain = stack.enter_context(
                flattened(qemu_img, self.chain, format=self.disk_format, compress=self.compress)
            )
            disk = chain[0]
            fd = os.open(disk.path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            name = NAMES[self.disk_format]
            blob = disk_layer(fd, os.fstat(fd).st_size, name)
            meter = Meter(2 * blob.size, progress)
            layer = Descriptor(media_type=LAYER, digest=blob.digest(meter.add), size=blob.size)
            content = digest_of(disk.path, format=self.disk_format, qemu_img=qemu_img)
            assert disk.virtual_size is not None
            digest = self._send(layer, blob, self._annotations(disk.virtual_size, content), meter)
        return Exported(
            path=self.path,
            reference=None if self.reference is None else str(self.reference),
            layout=self.layout,
            digest=digest,
            disk=f"/disk/{name}",
            format=self.disk_format,
            virtual_size=disk.virtual_size,
            size=layer.size,
            content_digest=content,
        )

    def _annotations(self, virtual_size: int, content: str) -> dict[str, str]:
        said = {FORMAT: self.disk_format, VIRTUAL_SIZE: str(virtual_size), CONTENT_DIGEST: content}
        built = provenance_of(self.path)
        labels = built.labels if built is not None and built.content == content else {}
        return {**labels, **said, **self.annotations}

    def _send(self, layer: Descriptor, blob: Blob, annotations: Mapping[str, str], meter: Meter) -> str:
        content, described = describe(image_config(layer.digest, self.architecture), IMAGE_CONFIG)
        if self.layout is not None:
            return write_layout(
                self.layout, self.tag, [(layer, blob)], (described, content), annotations=annotations, count=meter.add
            )
        assert self.reference is not None
        digest, _ = publish(
            self.connection.open(self.reference),
            [(layer, blob)],
            (described, content),
            annotations=annotations,
            known=self.known,
            meter=meter,
        )
        return digest


def export_containerdisk(
    image: PathLike,
    reference: str | None = None,
    *,
    layout: PathLike | None = None,
    tag: str | None = None,
    format: str | None = None,
    disk_format: DiskFormat = "qcow2",
    compress: bool = False,
    architecture: str | None = None,
    annotations: Mapping[str, str] | None = None,
    force: bool = False,
    connection: Connection = DEFAULT,
    qemu_img: QemuImg | None = None,
    progress: Callable[[float], None] | None = None,
) -> Exported:
    """Makes a containerDisk of `image` and all it stands on, and pushes it as `reference`, or writes it into the OCI
    layout in the folder `layout` under `tag` (`latest`).

    `architecture` is Go's name (`amd64`); None is this machine's. Raises as `guard`; RefusedError for a chain that is
    damaged or whose parents changed (not with `force`); RegistryError; ImageError for a folder that is not a layout.
    """
    request = ContainerDiskRequest(
        image,
        reference,
        layout=layout,
        tag=tag,
        format=format,
        disk_format=disk_format,
        compress=compress,
        architecture=architecture,
        annotations=annotations,
        force=force,
        connection=connection,
    )
    return request.make(qemu_img or QemuImg(), progress=progress)

"""Images to a registry."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from imgtool.chain.anchors import refuse_changed
from imgtool.chain.content import layers_of
from imgtool.chain.encryption import refuse_encrypted
from imgtool.chain.graph import Image
from imgtool.chain.walk import guard
from imgtool.errors import RefusedError, UsageError
from imgtool.image.manifest import Provenance, provenance_of
from imgtool.image.names import PathLike, printable
from imgtool.image.names import absolute as absolute_path
from imgtool.operations.plan import Plan, Touched
from imgtool.publish.oci.blob import Blob
from imgtool.publish.oci.connection import DEFAULT, JOBS, Connection
from imgtool.publish.oci.known import Known
from imgtool.publish.oci.layers import Layer, open_layers, opened, refuse_damaged, refuse_no_layer, with_contents
from imgtool.publish.oci.parallel import Meter, each
from imgtool.publish.oci.reference import parse_reference
from imgtool.publish.oci.registry import Registry
from imgtool.publish.oci.transfer import State, upload
from imgtool.publish.oci.values import (
    ARTIFACT,
    CONTENT_DIGEST,
    FORMAT,
    IMAGE_CONFIG,
    MANIFEST,
    RECIPE_DIGEST,
    VIRTUAL_SIZE,
    Config,
    Descriptor,
    ImageConfig,
    Labels,
    Manifest,
    Rootfs,
    describe,
)
from imgtool.publish.serve import local_layers
from imgtool.qemu import img_argv
from imgtool.qemu.digest import content_digest
from imgtool.qemu.extents import open_as
from imgtool.qemu.qemu_img import QemuImg

Progress = Callable[[float], None]


class PushedLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One image of the chain, and how the repository got it."""

    path: str
    """The image's file here."""
    digest: str
    """Of the blob: `sha256:…`."""
    size: int
    """Bytes of the blob."""
    state: State
    """present: the repository had it. mounted: another repository of the registry had it. uploaded: it was sent."""


class Pushed(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of a push."""

    reference: str
    """The name it has in the registry."""
    digest: str
    """Of the manifest: `REPOSITORY@DIGEST` names this image for good."""
    layers: tuple[PushedLayer, ...]
    """The base first."""
    uploaded_bytes: int
    """How many were sent."""
    content_digest: str | None
    """The digest of what a guest reads of it; None when that is not known."""
    notes: tuple[str, ...] = ()
    """What else is good to know, in words."""


class PushRequest:
    """An image that may be pushed: it was looked at and allowed, nothing was sent."""

    def __init__(
        self,
        image: PathLike,
        reference: str,
        *,
        format: str | None = None,
        flatten: bool = False,
        compress: bool = False,
        content: bool = True,
        recipe_digest: str | None = None,
        annotations: Mapping[str, str] | None = None,
        force: bool = False,
        connection: Connection = DEFAULT,
        known: Known | None = None,
    ) -> None:
        """See `push`."""
        self.path = absolute_path(image)
        self.reference = parse_reference(reference)
        if self.reference.digest is not None:
            raise UsageError(
                f"{reference} names a digest, which an image gets by being pushed", hint="name a tag, or nothing"
            )
        if compress and not flatten:
            raise UsageError("layers are pushed as they are: nothing compresses them", hint="-c goes with --flatten")
        self.chain = guard(self.path, format=format)
        self.notes = refuse_changed(self.chain, force=force)
        self.force = force
        self.flatten = flatten
        self.compress = compress
        self.content = content
        self.recipe_digest = recipe_digest
        self.annotations = dict(annotations or {})
        self.connection = connection
        self.known = known or Known()
        if not flatten:
            refuse_no_layer(self.chain)
        self._refuse_unreadable()
        for node in self.chain:
            if node.snapshots and (not flatten or node is self.chain[0]):
                count = len(node.snapshots)
                which = "internal snapshot" if count == 1 else f"{count} internal snapshots"
                how = "without" if flatten else "with"
                self.notes.append(f"{printable(node.path)} is pushed {how} its {which}")

    def _refuse_unreadable(self) -> None:
        """RefusedError when the disk has to be read, and is encrypted; layers go as they are."""
        if not self.flatten and not self.content:
            return
        try:
            refuse_encrypted(self.chain)
        except RefusedError as error:
            if not self.flatten:
                error.hint = f"--no-content-digest pushes it as it is; {error.hint}"
            raise

    def plan(self, program: str) -> Plan:
        commands = []
        images = [
            Touched(path=node.path, action="read", bytes=node.actual_size)
            for node in self.chain
            if node.path.startswith("/")
        ]
        if self.flatten:
            source, format = open_as(local_layers(self.chain))
            argv = img_argv.convert(
                program,
                [source],
                os.path.join(scratch(), "image.qcow2"),
                output_format="qcow2",
                format=format,
                compressed=self.compress,
                cache="unsafe",
            )
            commands.append(tuple(argv))
        notes = (f"layers that {self.reference.repository} lacks are uploaded, then {self.reference} names them",)
        return Plan(commands=tuple(commands), images=tuple(images), notes=(*self.notes, *notes))

    def make(self, qemu_img: QemuImg, *, progress: Progress | None = None) -> Pushed:
        """Pushes it. The reference names the image only when all of it is there."""
        if not self.force:
            refuse_damaged(self.chain, qemu_img)
        with contextlib.ExitStack() as stack:
            chain = (
                stack.enter_context(flattened(qemu_img, self.chain, compress=self.compress))
                if self.flatten
                else self.chain
            )
            # a device has no size as a file has
            size = sum(os.stat(node.path).st_size or node.virtual_size or 0 for node in chain)
            meter = Meter(2 * size, progress)
            layers = open_layers(stack, chain, self.known, meter.add)
            if self.content:
                layers = with_contents(
                    layers,
                    chain,
                    self.known,
                    lambda below: content_digest(qemu_img, layers_of(below), below[0].virtual_size or 0),
                )
            if self.flatten:
                layers = [layer._replace(path=self.path) for layer in layers]
            return self._send(layers, meter)

    def _send(self, layers: Sequence[Layer], meter: Meter) -> Pushed:
        top = layers[-1]
        built = self._built(top)
        config = Config(
            schema=1,
            format=top.format,
            virtual_size=top.virtual_size,
            layers=tuple(layer.config() for layer in layers),
            content_digest=top.content,
            recipe_digest=self._recipe_digest(built),
        )
        annotations = {} if built is None else dict(built.labels)
        annotations |= {FORMAT: top.format, VIRTUAL_SIZE: str(top.virtual_size)}
        if top.content is not None:
            annotations[CONTENT_DIGEST] = top.content
        if config.recipe_digest is not None:
            annotations[RECIPE_DIGEST] = config.recipe_digest
        rootfs = Rootfs(diff_ids=tuple(layer.digest for layer in layers))
        document = ImageConfig(image=config, config=Labels(labels=annotations), rootfs=rootfs)
        content, described = describe(document, IMAGE_CONFIG)
        blobs = [(layer.descriptor(), layer.blob) for layer in layers]
        registry = self.connection.open(self.reference)
        digest, states = publish(
            registry,
            blobs,
            (described, content),
            artifact=ARTIFACT,
            annotations={**annotations, **self.annotations},
            known=self.known,
            jobs=self.connection.jobs,
            meter=meter,
        )
        pushed = tuple(
            PushedLayer(path=layer.path, digest=layer.digest, size=layer.blob.size, state=states[layer.digest])
            for layer in layers
        )
        return Pushed(
            reference=str(self.reference),
            digest=digest,
            layers=pushed,
            uploaded_bytes=sum(layer.size for layer in pushed if layer.state == "uploaded"),
            content_digest=top.content,
            notes=tuple(self.notes),
        )

    def _built(self, top: Layer) -> Provenance | None:
        """What the manifest beside the image says, if it is of that disk."""
        found = provenance_of(self.path)
        return found if found is not None and found.content == top.content else None

    def _recipe_digest(self, built: Provenance | None) -> str | None:
        if self.recipe_digest is not None or built is None:
            return self.recipe_digest
        return f"sha256:{built.recipe_sha256}"


def publish(
    registry: Registry,
    layers: Sequence[tuple[Descriptor, Blob]],
    config: tuple[Descriptor, bytes],
    *,
    artifact: str | None = None,
    annotations: Mapping[str, str],
    known: Known,
    jobs: int = JOBS,
    meter: Meter,
) -> tuple[str, dict[str, State]]:
    """Has the registry have an image, or an `artifact` of that type, its blobs before its manifest, which the
    registry's reference then names.
    Returns the manifest's digest and what became of each layer."""
    states: dict[str, State] = {}

    def send(item: tuple[Descriptor, Blob]) -> None:
        descriptor, blob = item
        states[descriptor.digest] = upload(registry, descriptor.digest, blob, known, meter.add)

    distinct = {descriptor.digest: (descriptor, blob) for descriptor, blob in layers}
    each(send, list(distinct.values()), jobs=jobs, halted=registry.transport.halted)
    described, content = config
    upload(registry, described.digest, Blob(content), known, lambda _: None)
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST,
        artifact_type=artifact,
        config=described,
        layers=tuple(descriptor for descriptor, _ in layers),
        annotations=dict(annotations),
    )
    document, descriptor = describe(manifest, MANIFEST)
    registry.put_manifest(document, MANIFEST, registry.reference.version)
    return descriptor.digest, states


def scratch() -> str:
    """Where files as large as disks are made for a while."""
    return os.environ.get("TMPDIR") or "/var/tmp"


@contextlib.contextmanager
def flattened(
    qemu_img: QemuImg, chain: Sequence[Image], *, format: str = "qcow2", compress: bool = False
) -> Iterator[list[Image]]:
    """Yields the chain of one image, which holds the disk of `chain`, in a temporary folder. Raises as `opened` for
    an image that a program writes."""
    source, source_format = open_as(local_layers(chain))
    with contextlib.ExitStack() as stack:
        for image in chain:
            if image.format is not None:
                opened(stack, image)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="imgtool-", dir=scratch()))
        path = os.path.join(folder, f"image.{format}")
        qemu_img.convert(
            source, path, output_format=format, format=source_format, compressed=compress, cache="unsafe"
        )
        yield guard(path, format=format)


def push(
    image: PathLike,
    reference: str,
    *,
    format: str | None = None,
    flatten: bool = False,
    compress: bool = False,
    content: bool = True,
    recipe_digest: str | None = None,
    annotations: Mapping[str, str] | None = None,
    force: bool = False,
    connection: Connection = DEFAULT,
    qemu_img: QemuImg | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Pushes `image` with its chain as `reference` (`HOST[:PORT]/NAME[:TAG]`): one layer per image, or with `flatten`
    a single one (`compress`ed).

    With `content` what a guest reads is digested and recorded, which reads the whole disk once. `annotations` are
    added to the manifest's, as are the labels and the digest of the recipe that built the image, unless
    `recipe_digest` names another. Raises as `guard`; RefusedError for a chain that is damaged or whose parents
    changed (not with `force`), or whose images cannot be layers; RegistryError when the registry does not take it:
    another call resumes where this one stopped.
    """
    request = PushRequest(
        image,
        reference,
        format=format,
        flatten=flatten,
        compress=compress,
        content=content,
        recipe_digest=recipe_digest,
        annotations=annotations,
        force=force,
        connection=connection,
    )
    return request.make(qemu_img or QemuImg(), progress=progress)

"""From the last layer to the finished image: checked, converted, tried in a throwaway clone, then there at once."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import msgspec

from imgtool._version import __version__
from imgtool.build.base import Base
from imgtool.build.current import compression_of, is_thin, made_of, options_of
from imgtool.build.guest import Start, Starter, kinds_used
from imgtool.build.layers import Ground
from imgtool.build.memory import file_sha256, identity
from imgtool.build.output import Log
from imgtool.build.recipe import Loaded, Output, executor_of
from imgtool.build.records import BuiltOutput
from imgtool.build.steps import StepFailed, Steps
from imgtool.build.store import encode
from imgtool.build.watcher import Watcher
from imgtool.chain.content import digest_of
from imgtool.errors import ImageFormatError, ImgtoolError
from imgtool.image import remembered
from imgtool.image.manifest import SUFFIX
from imgtool.image.names import pasted, printable
from imgtool.image.whole import write_whole
from imgtool.operations.anchoring import add_anchor
from imgtool.operations.copying import copy_file
from imgtool.operations.overlay import reference_to
from imgtool.qemu.img_base import rename_in
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.replace import replacing


class ManifestLayer(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """A layer that the image was made from."""

    name: str
    """In the recipe."""
    key: str
    """The SHA-256, in hex, of everything that went into it."""
    content: str
    """The digest of what a guest reads (`imgtool1:…`)."""
    created: float
    """Seconds since the epoch."""
    seconds: float
    """How long its steps took."""
    by_hand: bool = False
    """Somebody worked in the guest while it was made."""


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What lies beside a finished image, as NAME.manifest.json."""

    schema: Literal[1] = 1
    """The version of this document."""
    image: str
    """The image's name in its recipe."""
    file: str
    """Its file's name."""
    format: str
    """As QEMU calls it."""
    virtual_size: int
    """Bytes of the disk."""
    size: int
    """Bytes of the file."""
    sha256: str
    """Of the file's bytes."""
    content: str
    """The digest of what a guest reads of it."""
    recipe_sha256: str
    """Of the recipe's text, in hex."""
    arguments: dict[str, str]
    """The values of its arguments."""
    labels: dict[str, str]
    """What the recipe says of the image."""
    base: str
    """The base's file name."""
    base_content: str
    """The digest of what a guest reads of the base."""
    layers: tuple[ManifestLayer, ...]
    """From the base upwards."""
    lineage: tuple[str, ...]
    """Content digests from the base to the image."""
    checks: tuple[str, ...]
    """The commands that succeeded in a clone of it, or of another output with the same disk."""
    created: float
    """Seconds since the epoch."""
    seconds: dict[str, float]
    """How long building the layers, converting and checking took."""
    imgtool: str
    """The version that made it."""
    qemu_img: str
    """Its version."""
    qemu_system: str
    """Its version."""


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """What a result is made with."""

    loaded: Loaded
    output: Output
    trial: bool
    """Whether the recipe's checks are run on it."""
    base: Base
    ground: Ground
    """The last layer, or the base of a recipe without layers."""
    layers: tuple[ManifestLayer, ...]
    qemu_img: QemuImg
    start: Starter
    scratch: str
    """A folder to work in."""
    seconds: float
    """That the layers took."""
    watcher: Watcher
    secrets: Mapping[str, str]


def make_result(making: Making) -> BuiltOutput:
    """Makes the output. When this returns it is there, with its manifest, and on disk; when it raises, what was there
    before is there still. StepFailed when a check fails."""
    output = making.output
    begun = time.monotonic()
    if making.trial:
        making.watcher.result(f"check {printable(os.path.basename(making.ground.image))}")
        _check(making)
    # A VMDK has its own name inside.
    with replacing(output.path, overwrite=True, several_files=output.format == "vmdk") as hidden:
        with _named(output.path, hidden):
            making.watcher.result(f"convert to {output.format}")
            _convert(making, hidden)
            content = _content(making, hidden)
            converted = time.monotonic()
            _try_out(making, hidden)
        os.chmod(hidden, 0o444)
        checked = time.monotonic()
        manifest = _manifest(
            making,
            hidden,
            content,
            {"layers": making.seconds, "convert": converted - begun, "check": checked - converted},
        )
    if is_thin(output):
        remembered.remember(output.path, making.base.path)
    os.chmod(output.path, 0o444)  # where it replaced something it got the mode of that
    write_whole(output.path + SUFFIX, encode(manifest), durable=True)
    return BuiltOutput(
        path=output.path,
        identity=identity(os.stat(output.path)),
        made_of=made_of(making.loaded, output, making.base, manifest.lineage[-1]),
        seconds=checked - begun,
        size=manifest.size,
    )


@contextlib.contextmanager
def _named(path: str, hidden: str) -> Iterator[None]:
    """Inside the `with` block, an error about the file `hidden` becomes one about `path`."""
    try:
        yield
    except ImgtoolError as error:
        rename_in(error, {hidden: path})
        raise


def _check(making: Making) -> None:
    check = making.qemu_img.check(making.ground.image, format=making.ground.format)
    if check.status not in ("clean", "unsupported"):
        raise ImageFormatError(
            f"{printable(making.ground.image)} is damaged ({check.status})",
            hint="`imgtool layers verify` looks at all layers; `imgtool build --no-cache` makes them again",
            path=making.ground.image,
        )


def _convert(making: Making, hidden: str) -> None:
    output = making.output
    thin = is_thin(output)
    folder = os.path.dirname(output.path)
    making.qemu_img.convert(
        _on_the_base(making) if thin else making.ground.image,
        hidden,
        format=making.ground.format,
        output_format=output.format,
        backing=reference_to(making.base.path, folder) if thin else None,
        backing_format=making.base.format if thin else None,
        options=options_of(output),
        compressed=compression_of(output) != "none",
        cache="unsafe",  # it stays in the page cache, to be proved
        overwrite=True,
    )
    if thin:
        add_anchor(hidden, making.base.path)


def _on_the_base(making: Making) -> str:
    """The last layer as an overlay right on the base. `convert -B` takes what its source's topmost image holds and
    leaves everything else to the backing file: of layers in between it would lose what they hold."""
    ground = making.ground
    if ground.layer is None or ground.layer.manifest.parent is None:
        return ground.image
    copy = os.path.join(making.scratch, "thin.qcow2")
    with open(ground.image, "rb") as source, open(copy, "xb") as target:
        copy_file(source.fileno(), target.fileno())
    base = making.base
    # Nobody misses the copy if this is interrupted, so it need not be brought to disk.
    making.qemu_img.rebase(copy, backing=base.path, backing_format=base.format, format="qcow2", cache="unsafe")
    return copy


def _content(making: Making, hidden: str) -> str:
    """The digest of what was made: what a guest reads of the last layer, or the conversion went wrong."""
    output = making.output
    content = digest_of(hidden, format=output.format, qemu_img=making.qemu_img)
    if content != making.ground.content:
        raise ImageFormatError(
            f"{printable(output.path)} came out as another disk than its last layer",
            hint="nothing was put in its place; a format whose sizes are coarser than the disk's cannot hold it",
            path=output.path,
        )
    return content


def _try_out(making: Making, hidden: str) -> None:
    """Runs the recipe's checks in a clone of the image, whose writes are thrown away."""
    loaded = making.loaded
    recipe = loaded.recipe
    if not recipe.checks or not making.trial:
        return
    making.watcher.result("start a throwaway clone for the checks")
    guest = making.start(
        Start(
            name=recipe.image.name,
            image=hidden,
            format=making.output.format,
            machine=recipe.machine,
            executors=kinds_used([executor_of(recipe, check) for check in recipe.checks]),
            throwaway=True,
            folder=making.scratch,
        )
    )
    try:
        with open(os.path.join(making.scratch, "check.log"), "wb") as file:
            log = Log(file, making.secrets.values(), making.watcher.output)
            for number, check in enumerate(recipe.checks):
                steps = Steps(
                    loaded, ("check", number), guest, log, secrets=making.secrets, say=_said(making.watcher)
                )
                steps.run(check.run)
    except StepFailed as error:
        if error.hint is None and recipe.layers:
            layer = pasted(f"{loaded.path}@{recipe.layers[-1].name}")
            error.hint = f"`imgtool boot {layer}` boots the same disk, to look into"
        raise
    finally:
        guest.kill()


def _said(watcher: Watcher) -> Callable[[str], None]:
    return lambda text: watcher.step(f"check: {text}")


def _manifest(making: Making, hidden: str, content: str, seconds: dict[str, float]) -> ImageManifest:
    import hashlib

    output = making.output
    recipe = making.loaded.recipe
    programs = making.qemu_img.programs
    size = making.qemu_img.info(hidden, format=output.format).virtual_size
    return ImageManifest(
        image=recipe.image.name,
        file=os.path.basename(output.path),
        format=output.format,
        virtual_size=size,
        size=os.path.getsize(hidden),
        sha256=file_sha256(hidden),
        content=content,
        recipe_sha256=hashlib.sha256(making.loaded.text.encode()).hexdigest(),
        arguments=making.loaded.arguments,
        labels=recipe.image.labels,
        base=os.path.basename(making.base.path),
        base_content=making.base.content,
        layers=making.layers,
        lineage=(making.base.content, *(layer.content for layer in making.layers)),
        checks=tuple(line for check in recipe.checks for line in check.run),
        created=time.time(),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        imgtool=__version__,
        qemu_img=programs.version("qemu-img").text,
        qemu_system=programs.version("qemu-system-x86_64").text,
    )

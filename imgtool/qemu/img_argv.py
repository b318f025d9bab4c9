"""qemu-img's command lines: pure functions, one per subcommand. Source: `qemu-img --help` and qemu-img(1).

A path is made absolute, so that no name is taken for an option or a protocol. A backing reference stays as written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from imgtool.errors import UsageError
from imgtool.image.names import PathLike, absolute, printable
from imgtool.qemu.img_types import (
    Backing,
    BitmapAction,
    Cache,
    ImageOpts,
    Merge,
    OptionValue,
    Repair,
    SnapshotParam,
    Source,
    Verbatim,
    backing_reference,
    join_options,
    parse_options,
)
from imgtool.sizes import Size, bytes_of

__all__ = [
    "Backing",
    "BitmapAction",
    "Cache",
    "ImageOpts",
    "Merge",
    "OptionValue",
    "Repair",
    "SnapshotParam",
    "Source",
    "Verbatim",
    "amend",
    "backing_reference",
    "bitmap",
    "check",
    "commit",
    "compare",
    "convert",
    "create",
    "info",
    "join_options",
    "map",
    "measure",
    "parse_options",
    "rebase",
    "resize",
    "snapshot",
]


def create(
    program: str,
    path: PathLike,
    size: Size | None = None,
    *,
    format: str,
    backing: Backing | None = None,
    backing_format: str | None = None,
    unsafe_backing: bool = False,
    options: Mapping[str, OptionValue] = {},
    objects: Sequence[str] = (),
) -> list[str]:
    argv = [program, "create", *_objects(objects), "-q", "-f", format, *_backing("-b", backing, backing_format)]
    argv += ["-u"] * unsafe_backing
    return [*argv, *_options(options), absolute(path), *([] if size is None else [str(bytes_of(size))])]


def info(
    program: str,
    image: Source,
    *,
    format: str | None = None,
    backing_chain: bool = False,
    force_share: bool = True,
    objects: Sequence[str] = (),
) -> list[str]:
    argv = [program, "info", "--output=json", *_objects(objects), *["--backing-chain"] * backing_chain]
    return [*argv, *["-U"] * force_share, *_image(image, format)]


def check(
    program: str,
    image: Source,
    *,
    format: str | None = None,
    repair: Repair | None = None,
    source_cache: Cache | None = None,
    force_share: bool = False,
    objects: Sequence[str] = (),
) -> list[str]:
    argv = [program, "check", "--output=json", *_objects(objects), *_given("-r", repair), *_given("-T", source_cache)]
    return [*argv, *["-U"] * force_share, *_image(image, format)]


def convert(
    program: str,
    sources: Sequence[Source],
    target: Source,
    *,
    output_format: str,
    format: str | None = None,
    backing: Backing | None = None,
    backing_format: str | None = None,
    options: Mapping[str, OptionValue] = {},
    snapshot: str | SnapshotParam | None = None,
    compressed: bool = False,
    sparse_size: Size | None = None,
    num_coroutines: int | None = None,
    out_of_order: bool = False,
    rate_limit: Size | None = None,
    cache: Cache = "writeback",
    source_cache: Cache | None = None,
    copy_offload: bool = False,
    skip_creation: bool = False,
    target_is_zero: bool = False,
    bitmaps: bool = False,
    skip_broken_bitmaps: bool = False,
    salvage: bool = False,
    force_share: bool = False,
    objects: Sequence[str] = (),
    progress: bool = False,
) -> list[str]:
    """qemu-img's own default for `-t` is unsafe: after exit 0 a power loss gives wrong bytes. Hence writeback. The
    backing format goes among the options: `-F` is there from QEMU 6.1 on only."""
    if not sources:
        raise UsageError("convert needs an image to read")
    argv = [program, "convert", *_objects(objects), *["-p"] * progress, "-t", cache, *_given("-T", source_cache)]
    below = _backing("-B", backing, backing_format)
    named = {"backing_fmt": backing_format} if backing_format is not None else {}
    argv += [*below[:2], *_options(options, extra=named), *_snapshot(snapshot), *["-c"] * compressed]
    argv += [*_given_size("-S", sparse_size), *_given("-m", num_coroutines), *["-W"] * out_of_order]
    argv += [*_given_size("-r", rate_limit), *["-C"] * copy_offload, *["-n"] * skip_creation]
    argv += ["--target-is-zero"] * target_is_zero + ["--bitmaps"] * bitmaps
    argv += ["--skip-broken-bitmaps"] * skip_broken_bitmaps + ["--salvage"] * salvage + ["-U"] * force_share
    to = ["--target-image-opts"] if isinstance(target, ImageOpts) else ["-O", output_format]
    return [*argv, *to, *_images(sources, [format] * len(sources)), _place(target)]


def commit(
    program: str,
    image: Source,
    *,
    format: str | None = None,
    base: PathLike | None = None,
    keep: bool = False,
    cache: Cache | None = None,
    rate_limit: Size | None = None,
    objects: Sequence[str] = (),
    progress: bool = False,
) -> list[str]:
    argv = [program, "commit", *_objects(objects), *["-p"] * progress, *_given("-t", cache)]
    argv += [*_given("-b", None if base is None else absolute(base)), *["-d"] * keep, *_given_size("-r", rate_limit)]
    return [*argv, *_image(image, format)]


def snapshot(
    program: str,
    image: Source,
    verb: Literal["create", "apply", "delete"],
    name: str,
    *,
    format: str | None = None,
    objects: Sequence[str] = (),
) -> list[str]:
    """A format is named by image options: `-f` is there from QEMU 10.0 on only."""
    if not name:
        raise UsageError("the name of the snapshot is empty")
    if format is not None:
        image = _as_options(image, format)
    return [program, "snapshot", *_objects(objects), "-q", f"-{verb[0]}", name, *_image(image, None)]


def rebase(
    program: str,
    image: Source,
    *,
    backing: Backing | None,
    backing_format: str | None = None,
    format: str | None = None,
    unsafe: bool = False,
    cache: Cache | None = None,
    source_cache: Cache | None = None,
    force_share: bool = False,
    objects: Sequence[str] = (),
    progress: bool = False,
) -> list[str]:
    """Only writethrough is crash-safe: else the header names the new backing file before the L2 tables are on disk
    (seen with 7.2: 8 of 272 killed runs left wrong content)."""
    argv = [program, "rebase", *_objects(objects), *["-p"] * progress, *["-u"] * unsafe]
    argv += [*_given("-t", cache or "writethrough"), *_given("-T", source_cache), *["-U"] * force_share]
    to = ["-b", ""] if backing is None else _backing("-b", backing, backing_format)
    return [*argv, *to, *_image(image, format)]


def resize(
    program: str,
    image: Source,
    size: Size,
    *,
    format: str | None = None,
    shrink: bool = False,
    preallocation: str | None = None,
    objects: Sequence[str] = (),
) -> list[str]:
    argv = [program, "resize", *_objects(objects), "-q", *["--shrink"] * shrink]
    argv += [f"--preallocation={preallocation}"] if preallocation else []
    return [*argv, *_image(image, format), str(bytes_of(size))]


def compare(
    program: str,
    image: Source,
    other: Source,
    *,
    format: str | None = None,
    other_format: str | None = None,
    strict: bool = False,
    source_cache: Cache | None = None,
    force_share: bool = False,
    objects: Sequence[str] = (),
    progress: bool = False,
) -> list[str]:
    argv = [program, "compare", *_objects(objects), *["-p"] * progress, *["-s"] * strict]
    argv += [*_given("-T", source_cache), *["-U"] * force_share]
    if isinstance(image, ImageOpts) or isinstance(other, ImageOpts):
        return [*argv, *_images([image, other], [format, other_format])]
    return [*argv, *_given("-f", format), *_given("-F", other_format), absolute(image), absolute(other)]


def map(  # noqa: A001 - the subcommand's name
    program: str,
    image: Source,
    *,
    format: str | None = None,
    start_offset: Size | None = None,
    max_length: Size | None = None,
    force_share: bool = False,
    objects: Sequence[str] = (),
) -> list[str]:
    argv = [program, "map", "--output=json", *_objects(objects)]
    argv += [] if start_offset is None else [f"--start-offset={bytes_of(start_offset)}"]
    argv += [] if max_length is None else [f"--max-length={bytes_of(max_length)}"]
    return [*argv, *["-U"] * force_share, *_image(image, format)]


def measure(
    program: str,
    image: Source | None = None,
    *,
    size: Size | None = None,
    output_format: str,
    format: str | None = None,
    options: Mapping[str, OptionValue] = {},
    snapshot: str | SnapshotParam | None = None,
    force_share: bool = False,
    objects: Sequence[str] = (),
) -> list[str]:
    argv = [program, "measure", "--output=json", *_objects(objects), "-O", output_format, *_options(options)]
    if image is None and size is not None:
        return [*argv, f"--size={bytes_of(size)}"]
    if image is None or size is not None:
        raise UsageError("measure needs either an image or a size")
    return [*argv, *_snapshot(snapshot), *["-U"] * force_share, *_image(image, format)]


def amend(
    program: str,
    image: Source,
    options: Mapping[str, OptionValue],
    *,
    format: str | None = None,
    cache: Cache | None = None,
    force: bool = False,
    objects: Sequence[str] = (),
    progress: bool = False,
) -> list[str]:
    if not options:
        raise UsageError("amend needs an option to change", hint="name it with -o")
    argv = [program, "amend", *_objects(objects), *["-p"] * progress, *_given("-t", cache), *["--force"] * force]
    return [*argv, *_options(options, "rebase"), *_image(image, format)]


def bitmap(
    program: str,
    image: Source,
    name: str,
    actions: Sequence[BitmapAction],
    *,
    format: str | None = None,
    granularity: Size | None = None,
    merge_from: PathLike | None = None,
    merge_from_format: str | None = None,
    objects: Sequence[str] = (),
) -> list[str]:
    if not actions:
        raise UsageError("bitmap needs something to do", hint="add, remove, clear, enable, disable or merge")
    argv = [program, "bitmap", *_objects(objects)]
    for action in actions:
        argv += ["--merge", action.source] if isinstance(action, Merge) else [f"--{action}"]
    argv += _given_size("-g", granularity)
    if merge_from is not None:
        argv += ["-b", absolute(merge_from), *_given("-F", merge_from_format)]
    *how, place = _image(image, format)
    return [*argv, *how, "--", place, name]


def _objects(objects: Sequence[str]) -> list[str]:
    return [word for definition in objects for word in ("--object", definition)]


def _given(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]


def _given_size(flag: str, size: Size | None) -> list[str]:
    return [] if size is None else [flag, str(bytes_of(size))]


def _options(
    options: Mapping[str, OptionValue],
    instead: str = "backing and backing_format",
    extra: Mapping[str, OptionValue] = {},
) -> list[str]:
    for key in ("backing_file", "backing_fmt"):
        if key in options:
            raise UsageError(f"{key} cannot be given among the options", hint=f"use {instead} for the backing file")
    whole = {**options, **extra}
    return ["-o", join_options(whole)] if whole else []


def _backing(flag: str, backing: Backing | None, backing_format: str | None) -> list[str]:
    if backing is None:
        if backing_format is not None:
            raise UsageError("a backing format is given, but no backing file")
        return []
    reference = backing_reference(backing)
    if backing_format is None:
        raise UsageError(
            f"the format of the backing file {printable(reference)} is not named",
            hint="name it with -F: a probed format lets a guest turn its raw disk into something else",
        )
    return [flag, reference, "-F", backing_format]


def _snapshot(snapshot: str | SnapshotParam | None) -> list[str]:
    if isinstance(snapshot, str):
        if not snapshot.startswith("snapshot."):
            return ["-l", snapshot]
        snapshot = SnapshotParam(name=snapshot)  # bare it would be read as options
    if snapshot is None:
        return []
    given = {"snapshot.id": snapshot.id, "snapshot.name": snapshot.name}
    return ["-l", join_options({key: value for key, value in given.items() if value is not None})]


def _place(image: Source) -> str:
    return image.text if isinstance(image, ImageOpts) else absolute(image)


def _image(image: Source, format: str | None) -> list[str]:
    return _images([image], [format])


def _images(images: Sequence[Source], formats: Sequence[str | None]) -> list[str]:
    """The flags and words for images of one command, all of which are paths or all image options to qemu-img."""
    if any(isinstance(image, ImageOpts) for image in images):
        words = [_as_options(image, format).text for image, format in zip(images, formats, strict=True)]
        return ["--image-opts", *words]
    return [*_given("-f", formats[0]), *(_place(image) for image in images)]


def _as_options(image: Source, format: str | None) -> ImageOpts:
    if isinstance(image, ImageOpts):
        return image
    path = absolute(image)
    if format is None:
        raise UsageError(f"the format of {printable(path)} must be named beside an image given by its options")
    return ImageOpts.of({"driver": format, "file.filename": path})

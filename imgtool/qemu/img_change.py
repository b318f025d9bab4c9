"""qemu-img's verbs that change an image in place."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from imgtool.errors import ImageFormatError, UsageError
from imgtool.image.header import Header, Qcow2Details, read_header
from imgtool.image.names import PathLike, absolute
from imgtool.image.qapi import ImageInfo
from imgtool.image.reference import parse as parse_reference
from imgtool.image.remembered import remember
from imgtool.image.version2 import refuse_amend
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Backing, BitmapAction, Cache, ImageOpts, OptionValue, Source, Verbatim
from imgtool.qemu.img_base import ImgBase, Progress, notes_of, place_named, place_of, some
from imgtool.qemu.inputs import check_input
from imgtool.qemu.results import Changed, Committed
from imgtool.sizes import Size, parse_resize


class Changing(ImgBase):
    """See QemuImg."""

    def commit(
        self,
        image: Source,
        *,
        format: str | None = None,
        base: PathLike | None = None,
        keep: bool = False,
        cache: Cache | None = None,
        rate_limit: Size | None = None,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Committed:
        """Writes what `image` holds into its backing file, or into `base` further down, and empties `image` unless
        `keep` (-d). With `base` the images between are invalid afterwards.

        UsageError when `image` has no backing file.
        """
        format, before = self._before(image, format, objects)
        if before.backing_filename is None:
            raise UsageError(f"{place_of(image)} has no backing file to commit into", path=place_of(image))
        place = absolute(base) if base is not None else base_of(image, before)
        base_format = before.backing_filename_format if base is None else None
        if place is not None:
            check_input(place, what="backing file", write=True)
        cwd = self._approve([image], [format])
        base_before = None if place is None else self._info(place, base_format, ())
        argv = img_argv.commit(
            self.program,
            image,
            format=format,
            base=base,
            keep=keep,
            cache=cache,
            rate_limit=rate_limit,
            objects=objects,
            progress=progress is not None,
        )
        dirty = is_dirty(image, before) or (place is not None and is_dirty(place, base_before))
        done = self._change(argv, image, cwd=cwd, dirty=dirty, progress=progress)
        return Committed(
            path=place_of(image),
            before=before,
            after=self._info(image, format, objects, own=True),
            written=(place_of(image), *([] if place is None else [place])),
            notes=notes_of(done),
            base=place,
            base_before=base_before,
            base_after=None if place is None else self._info(place, base_format, (), own=True),
        )

    def commit_chain(
        self,
        chain: ImageOpts,
        *,
        base: PathLike | None = None,
        keep: bool = False,
        cache: Cache | None = None,
        rate_limit: Size | None = None,
        progress: Progress | None = None,
    ) -> None:
        """As `commit`, for a chain whose images were named one by one (`ImageOpts.of_chain`)."""
        argv = img_argv.commit(
            self.program,
            chain,
            base=base,
            keep=keep,
            cache=cache,
            rate_limit=rate_limit,
            progress=progress is not None,
        )
        self._change(argv, chain, cwd=self._approve([chain], []), progress=progress)

    def snapshot_create(
        self, image: Source, name: str, *, format: str | None = None, objects: Sequence[str] = ()
    ) -> Changed:
        """Keeps the disk as it is now as internal snapshot `name`."""
        return self._snapshot(image, "create", name, format, objects)

    def snapshot_apply(
        self, image: Source, snapshot: str, *, format: str | None = None, objects: Sequence[str] = ()
    ) -> Changed:
        """Reverts the disk to `snapshot` (a name or an ID)."""
        return self._snapshot(image, "apply", snapshot, format, objects)

    def snapshot_delete(
        self, image: Source, snapshot: str, *, format: str | None = None, objects: Sequence[str] = ()
    ) -> Changed:
        """Deletes the snapshot of that name; unlike `snapshot_apply`, qemu-img takes no ID here."""
        return self._snapshot(image, "delete", snapshot, format, objects)

    def rebase(
        self,
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
        progress: Progress | None = None,
    ) -> Changed:
        """Makes `backing` (as in `create`) the backing file, or none with None, and keeps what a guest reads; with
        `unsafe` (-u) only the name is changed. The default cache is writethrough: nothing else is crash-safe."""
        place = None if isinstance(image, ImageOpts) else place_named(absolute(image), backing)
        given = ("backing",) if unsafe else ()  # its old backing file is not opened then
        format, before = self._before(image, format, objects, without=given)
        if not unsafe and not isinstance(image, ImageOpts):
            check_backing(backing, os.path.dirname(absolute(image)))
            self._approve_parent(absolute(image), backing, backing_format)
        argv = img_argv.rebase(
            self.program,
            image,
            backing=backing,
            backing_format=backing_format,
            format=format,
            unsafe=unsafe,
            cache=cache,
            source_cache=source_cache,
            force_share=force_share,
            objects=objects,
            progress=progress is not None,
        )
        if place is not None:
            remember(absolute(image), place)  # type: ignore[arg-type]
        others = [] if unsafe else [(one, backing_format) for one in some(place)]
        return self._changed(argv, image, format, objects, before, others=others, without=given, progress=progress)

    def resize(
        self,
        image: Source,
        size: Size,
        *,
        format: str | None = None,
        shrink: bool = False,
        preallocation: str | None = None,
        objects: Sequence[str] = (),
    ) -> Changed:
        """Gives the disk `size` bytes; text such as `+512M` is relative to the size it has."""
        format, before = self._before(image, format, objects)
        new_size = size if isinstance(size, int) else parse_resize(size, before.virtual_size)
        argv = img_argv.resize(
            self.program,
            image,
            new_size,
            format=format,
            shrink=shrink,
            preallocation=preallocation,
            objects=objects,
        )
        return self._changed(argv, image, format, objects, before)

    def amend(
        self,
        image: Source,
        options: Mapping[str, OptionValue],
        *,
        format: str | None = None,
        cache: Cache | None = None,
        force: bool = False,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Changed:
        """Changes format options of an existing image. RefusedError for a qcow2 that would become one of version 2
        while it holds something that needs version 3: qemu-img would break its dirty bitmaps without a word."""
        format, before = self._before(image, format, objects)
        header = _header(image, format)
        if header is not None:
            refuse_amend(header, place_of(image), options)
        argv = img_argv.amend(
            self.program,
            image,
            options,
            format=format,
            cache=cache,
            force=force,
            objects=objects,
            progress=progress is not None,
        )
        return self._changed(argv, image, format, objects, before, progress=progress)

    def bitmap(
        self,
        image: Source,
        bitmap: str,
        actions: Sequence[BitmapAction],
        *,
        format: str | None = None,
        granularity: Size | None = None,
        merge_from: PathLike | None = None,
        merge_from_format: str | None = None,
        objects: Sequence[str] = (),
    ) -> Changed:
        """Does `actions` to a persistent bitmap, in order: `"add"`, `"remove"`, `"clear"`, `"enable"`, `"disable"`,
        or `Merge(source)`, whose source is a bitmap of this image or of `merge_from`."""
        format, before = self._before(image, format, objects)
        argv = img_argv.bitmap(
            self.program,
            image,
            bitmap,
            actions,
            format=format,
            granularity=granularity,
            merge_from=merge_from,
            merge_from_format=merge_from_format,
            objects=objects,
        )
        others = [] if merge_from is None else [(merge_from, merge_from_format)]
        return self._changed(argv, image, format, objects, before, others=others)

    def _snapshot(
        self,
        image: Source,
        verb: Literal["create", "apply", "delete"],
        name: str,
        format: str | None,
        objects: Sequence[str],
    ) -> Changed:
        format, before = self._before(image, format, objects)
        argv = img_argv.snapshot(self.program, image, verb, name, format=format, objects=objects)
        return self._changed(argv, image, format, objects, before)

    def _before(
        self,
        image: Source,
        format: str | None,
        objects: Sequence[str],
        *,
        without: Collection[str] = (),
    ) -> tuple[str | None, ImageInfo]:
        """The image as it is, and the format to name from here on: what was found once must not be probed again
        while it changes. None for image options, which name it themselves."""
        before = self._info(image, format, objects, without=without)
        return (None if isinstance(image, ImageOpts) else before.format), before

    def _changed(
        self,
        argv: Sequence[str],
        image: Source,
        format: str | None,
        objects: Sequence[str],
        before: ImageInfo,
        *,
        others: Sequence[tuple[Source, str | None]] = (),
        without: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Changed:
        """Runs `argv`, which reads `others` (each with its format), and looks at what has become of `image`."""
        images, formats = [image, *(one for one, _ in others)], [format, *(kind for _, kind in others)]
        cwd = self._approve(images, formats, parents=not without, without=without)
        dirty = is_dirty(image, before)
        done = self._change(argv, image, others=images[1:], cwd=cwd, dirty=dirty, progress=progress)
        path = place_of(image)
        after = self._info(image, format, objects, own=True)
        return Changed(path=path, before=before, after=after, written=(path,), notes=notes_of(done))


def check_backing(backing: Backing | None, directory: str) -> None:
    """`check_input` for the backing file of an image in `directory`; nothing for what is no path."""
    if backing is not None and not isinstance(backing, Verbatim):
        check_input(os.path.join(directory, os.fsdecode(backing)), what="backing file")


def is_dirty(image: Source, info: ImageInfo | None) -> bool:
    """Whether QEMU will mend `image` when it opens it for writing: it was not closed cleanly. QEMU 5.2 does so too,
    but its `info` denies it."""
    if info is None or info.format != "qcow2":
        return False
    header = _header(image, "qcow2")
    native = header is not None and isinstance(header.details, Qcow2Details) and header.details.dirty
    return native or bool(info.dirty_flag)


def base_of(image: Source, info: ImageInfo) -> str | None:
    """The path of the backing file of `image`, None when it is no file of this host."""
    name = info.full_backing_filename or info.backing_filename or ""
    if "\ufffd" in name:
        name = _true_backing(image, info) or name  # qemu-img's JSON has lost the name; the header has it
    if not os.path.isabs(name) or not os.path.lexists(name):
        return None
    # Without the dots, but `..` stays: after a symlink it is not the directory before it.
    return "/" + "/".join(part for part in name.split("/") if part not in ("", "."))


def _true_backing(image: Source, info: ImageInfo) -> str | None:
    header = _header(image, info.format)
    if header is None or header.backing is None or isinstance(image, ImageOpts):
        return None
    try:
        return parse_reference(header.backing, directory=os.path.dirname(absolute(image))).path
    except ImageFormatError:
        return None


def _header(image: Source, format: str | None) -> Header | None:
    if isinstance(image, ImageOpts):
        return None
    try:
        with open(absolute(image), "rb") as file:
            return read_header(file.fileno(), format=format)
    except (ImageFormatError, OSError):
        return None

"""qemu-img's verbs that make an image: `create` and `convert`, each all or nothing."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

from imgtool.errors import CommandError, ImageExistsError, ImgtoolError, RefusedError, UsageError
from imgtool.image.names import PathLike, absolute, printable
from imgtool.image.remembered import remember
from imgtool.qemu import img_argv
from imgtool.qemu.img_argv import Backing, Cache, ImageOpts, OptionValue, SnapshotParam, Source, Verbatim
from imgtool.qemu.img_base import ImgBase, Progress, notes_of, place_named, place_of, renamed_error, some
from imgtool.qemu.img_change import check_backing
from imgtool.qemu.inputs import check_input, in_use
from imgtool.qemu.process import NO_LIMITS, Limits, failure
from imgtool.qemu.replace import replacing
from imgtool.qemu.results import Created
from imgtool.qemu.writeback import written_early
from imgtool.sizes import Size

_QUICK_PREALLOCATION = ("off", "metadata")


class Making(ImgBase):
    """See QemuImg."""

    def create(
        self,
        path: PathLike,
        size: Size | None = None,
        *,
        format: str,
        backing: Backing | None = None,
        backing_format: str | None = None,
        unsafe_backing: bool = False,
        data_file: PathLike | None = None,
        options: Mapping[str, OptionValue] = {},
        overwrite: bool = False,
        objects: Sequence[str] = (),
        describe: bool = True,
        finish: Callable[[str], None] | None = None,
    ) -> Created:
        """Makes a new image of `size` bytes, or as large as its backing file. It appears under its name only when it
        is complete; a block device is written in place.

        `backing` is the reference as it will stand in the image: a relative one starts from the image's directory.
        With `unsafe_backing` (-u) it is not opened. `data_file` is made along with the image. ImageExistsError when
        there is a file already (not with `overwrite`). `finish` is called with the path of the complete image before
        it appears. Without `describe` qemu-img is not asked about the new image, see `Created.info`.
        """
        if size is None and backing is None and "size" not in options:
            raise UsageError(f"{printable(absolute(path))}: an image without a backing file needs a size")

        def argv(place: Source, options: Mapping[str, OptionValue]) -> list[str]:
            assert not isinstance(place, ImageOpts)
            return img_argv.create(
                self.program,
                place,
                size,
                format=format,
                backing=backing,
                backing_format=backing_format,
                unsafe_backing=unsafe_backing,
                options=options,
                objects=objects,
            )

        argv(path, options)  # nonsense is reported before anything is touched
        quick = options.get("preallocation", "off") in _QUICK_PREALLOCATION
        limits = self.limits if quick else NO_LIMITS
        making = _Making(path, format, None if unsafe_backing else backing, data_file, options, overwrite, objects)
        cwd = self._approve_parent(absolute(path), making.backing, backing_format)
        making.named = backing
        return self._make(making, argv, [], limits=limits, cwd=cwd, describe=describe, finish=finish)

    def convert(
        self,
        sources: Source | Sequence[Source],
        target: Source,
        *,
        output_format: str,
        format: str | None = None,
        backing: Backing | None = None,
        backing_format: str | None = None,
        data_file: PathLike | None = None,
        options: Mapping[str, OptionValue] = {},
        snapshot: str | SnapshotParam | None = None,
        compressed: bool = False,
        sparse_size: Size | None = None,
        num_coroutines: int | None = None,
        out_of_order: bool = False,
        rate_limit: Size | None = None,
        cache: Cache | None = None,
        source_cache: Cache | None = None,
        copy_offload: bool = False,
        skip_creation: bool = False,
        target_is_zero: bool = False,
        bitmaps: bool = False,
        skip_broken_bitmaps: bool = False,
        salvage: bool = False,
        force_share: bool = False,
        overwrite: bool = False,
        objects: Sequence[str] = (),
        progress: Progress | None = None,
        describe: bool = True,
        finish: Callable[[str], None] | None = None,
    ) -> Created:
        """Copies `sources` (several are concatenated) into a new image, which appears under its name only when it is
        complete and on disk. A block device, or any target with `skip_creation` (-n), is written in place.

        `rate_limit` is bytes per second. Unreadable sectors become zeros with `salvage`, and qemu-img's words about
        them are the result's `notes`. `describe` and `finish` are as for `create`. Without `cache` a new file does
        not stay in the page cache; with `cache="unsafe"` it does, and is on disk as well.
        """
        images = [sources] if isinstance(sources, str | bytes | os.PathLike | ImageOpts) else list(sources)

        def argv(place: Source, options: Mapping[str, OptionValue]) -> list[str]:
            return img_argv.convert(
                self.program,
                images,
                place,
                output_format=output_format,
                format=format,
                backing=backing,
                backing_format=backing_format,
                options=options,
                snapshot=snapshot,
                compressed=compressed,
                sparse_size=sparse_size,
                num_coroutines=num_coroutines,
                out_of_order=out_of_order,
                rate_limit=rate_limit,
                cache=cache or cache_for(place, options, in_place=skip_creation),
                source_cache=source_cache,
                copy_offload=copy_offload,
                skip_creation=skip_creation,
                target_is_zero=target_is_zero,
                bitmaps=bitmaps,
                skip_broken_bitmaps=skip_broken_bitmaps,
                salvage=salvage,
                force_share=force_share,
                objects=objects,
                progress=progress is not None,
            )

        argv(target, options)
        if isinstance(target, ImageOpts) and not skip_creation:
            raise UsageError("a target given by its options must exist", hint="use -n (skip_creation) with it")
        making = _Making(target, output_format, backing, data_file, options, overwrite, objects, skip_creation)
        given = [*images, target] if skip_creation else images
        formats = [*(format for _ in images), output_format]
        cwd = self._approve(given, formats)
        below = self._approve_parent(place_of(target), backing, backing_format)
        return self._make(
            making,
            argv,
            images,
            limits=self.long_limits,
            cwd=cwd or below,
            progress=progress,
            force_share=force_share,
            salvage=salvage,
            early=cache in (None, "writeback", "unsafe"),
            keep=cache is not None,
            describe=describe,
            finish=finish,
        )

    def _make(
        self,
        making: _Making,
        argv: Callable[[Source, Mapping[str, OptionValue]], list[str]],
        sources: Sequence[Source],
        *,
        limits: Limits,
        cwd: str | None = None,
        progress: Progress | None = None,
        force_share: bool = False,
        salvage: bool = False,
        early: bool = False,
        keep: bool = True,
        describe: bool = True,
        finish: Callable[[str], None] | None = None,
    ) -> Created:
        """Runs the command that `argv` makes for a place to write to, then puts what it wrote where it belongs. All
        images it opens were approved, and it is started in `cwd`: see `_approve`. `early`, `keep`: `written_early`.
        """
        for source in sources:
            if not isinstance(source, ImageOpts):
                check_input(absolute(source))
        with making.place() as (place, options, hidden):
            limits = NO_LIMITS if making.in_place else limits
            early = early and not making.in_place
            bulk = str(options.get("data_file", place))
            with written_early(bulk, keep=keep) if early else contextlib.nullcontext():
                done = self._run(argv(place, options), limits, progress, cwd)
            if done.status != 0 or (done.stderr.strip() and not salvage):
                error = failure(done, path=place_of(making.target))
                raise self._why(error, making, sources, force_share) or renamed_error(error, hidden)
            if making.data_file is not None and place != making.target:
                rename = {"data_file": making.data_file}
                self._change(img_argv.amend(self.program, place, rename, format=making.format), place)
            _remember(making.target, making.named, making.data_file)
            if finish is not None:
                finish(place_of(place))
        info = None
        if not isinstance(making.target, ImageOpts) and (describe or making.format == "vmdk"):  # of several files
            info = self._info(making.target, making.format, making.objects, own=True)
        extents = info.vmdk.extents if info is not None and info.vmdk is not None else ()
        files = [place_of(making.target), *(extent.filename for extent in extents), *some(making.data_file)]
        return Created(
            path=place_of(making.target),
            info=info,
            written=tuple(dict.fromkeys(files)),
            notes=notes_of(done),
        )

    def _why(
        self, error: CommandError, making: _Making, sources: Sequence[Source], force_share: bool
    ) -> ImgtoolError | None:
        """The better error, when it failed because another process holds an image."""
        for source in sources:
            if not isinstance(source, ImageOpts) and not force_share:
                busy = in_use(absolute(source), write=False, cause=error)
                if busy is not None:
                    return busy
        if making.in_place and not isinstance(making.target, ImageOpts):
            return in_use(place_of(making.target), write=True, cause=error)
        return None


class _Making:
    """One image to be made: where qemu-img shall write it, and what stands beside it."""

    def __init__(
        self,
        target: Source,
        format: str,
        backing: Backing | None,
        data_file: PathLike | None,
        options: Mapping[str, OptionValue],
        overwrite: bool,
        objects: Sequence[str],
        skip_creation: bool = False,
    ) -> None:
        self.target = target if isinstance(target, ImageOpts) else absolute(target)
        self.format = format
        self.backing = self.named = backing
        """What is opened for it, and what it is to name."""
        self.options = dict(options)
        given = self.options.pop("data_file", None)
        if data_file is None and given is not None:
            data_file = str(given)
        self.data_file = None if data_file is None else absolute(data_file)
        if self.data_file is not None and self.data_file == self.target:
            raise UsageError("the image and its data file cannot be the same file")
        self.overwrite = overwrite
        self.objects = objects
        self.in_place = skip_creation or isinstance(target, ImageOpts) or is_device(self.target)

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[Source, Mapping[str, OptionValue], Mapping[str, str]]]:
        """Where to write and with what options, and which hidden name stands for which file's."""
        if self.in_place:
            with self._in_place() as options:
                yield self.target, options, {}
            return
        assert isinstance(self.target, str)
        # VMDK writes its own name, and those of its extents made from it, into the image.
        several = self.format == "vmdk"
        with replacing(self.target, overwrite=self.overwrite, several_files=several) as path:
            folder = os.path.dirname(os.path.dirname(path) if several else path)
            self._check_backing(folder)
            hidden = {path: self.target}
            with contextlib.ExitStack() as stack:
                options = dict(self.options)
                if self.data_file is not None:
                    options["data_file"] = self.data_file
                    data = self.data_file if _keeps_data_file(options) else stack.enter_context(_new(self.data_file))
                    hidden[data] = self.data_file
                    options["data_file"] = data
                if several:
                    stack.enter_context(_reachable(self.backing, os.path.dirname(path)))
                yield path, options, hidden

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[Mapping[str, OptionValue]]:
        if isinstance(self.target, str):
            check_input(self.target, write=True)
            self._check_backing(os.path.dirname(self.target))
        if self.data_file is None:
            yield self.options
            return
        raise RefusedError(
            f"{printable(place_of(self.target))} is written in place, where its data file cannot be made safely",
            hint="make the image with create first, then convert into it with -n",
        )

    def _check_backing(self, folder: str) -> None:
        check_backing(self.backing, folder)
        if self.backing is None or isinstance(self.backing, Verbatim) or not isinstance(self.target, str):
            return
        backing = os.path.join(folder, os.fsdecode(self.backing))
        if os.path.exists(self.target) and os.path.samefile(backing, self.target):
            raise UsageError(f"{printable(self.target)} would be its own backing file", path=self.target)


def cache_for(place: Source, options: Mapping[str, OptionValue], *, in_place: bool = False) -> Cache:
    """What `-t` says where nobody chose. A new file needs none of qemu-img's flushes: it is brought to disk when it
    is complete, before it has its name."""
    flushed = in_place or isinstance(place, ImageOpts) or is_device(place)
    return "writeback" if flushed or _keeps_data_file(options) else "unsafe"


def _keeps_data_file(options: Mapping[str, OptionValue]) -> bool:
    """Whether the data file that `options` name is there already, and written in place."""
    given = options.get("data_file")
    return given is not None and (is_device(str(given)) or options.get("keep_data_file") in (True, "on"))


def is_device(target: Source) -> bool:
    """Whether it is a block device, which is written in place."""
    if isinstance(target, ImageOpts):
        return False
    try:
        return stat.S_ISBLK(os.stat(target).st_mode)
    except (OSError, ValueError):
        return False


def _new(path: str) -> contextlib.AbstractContextManager[str]:
    """`replacing` without ever replacing: an older image may rest on a data file that is there."""
    if os.path.lexists(path):
        raise ImageExistsError(
            f"{printable(path)} already exists, and a data file is not replaced",
            hint="choose another name for it; QEMU 10.2 and later take it as it is with -o keep_data_file=on",
            path=path,
        )
    return replacing(path)


@contextlib.contextmanager
def _reachable(backing: Backing | None, directory: str) -> Iterator[None]:
    """Inside the `with` block, a relative reference that starts from the parent of `directory` leads to the same
    place from `directory` itself."""
    if backing is None or isinstance(backing, Verbatim) or os.path.isabs(os.fsdecode(backing)):
        yield
        return
    first = next(part for part in os.fsdecode(backing).split("/") if part not in ("", "."))
    if first == "..":
        raise RefusedError(
            f"a VMDK cannot be made with the backing file {printable(os.fsdecode(backing))}",
            hint="give its absolute path",
        )
    link = os.path.join(directory, first)
    os.symlink(os.path.join("..", first), link)
    try:
        yield
    finally:
        os.unlink(link)


def _remember(target: Source, backing: Backing | None, data_file: str | None = None) -> None:
    """Notes for ever that the image made at `target` may refer to the files it was made to refer to."""
    if isinstance(target, ImageOpts):
        return
    image = absolute(target)
    for file in (place_named(image, backing), data_file):
        if file is not None:
            remember(image, file)

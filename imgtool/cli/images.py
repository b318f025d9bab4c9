"""What the image commands do around qemu-img: look at the image first, name its format, and say more than qemu-img
when it fails."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from imgtool.cli.context import Context
from imgtool.errors import (
    CommandError,
    CommandTimeout,
    ImageFormatError,
    ImageNotFoundError,
    ImgtoolError,
    RefusedError,
    UsageError,
)
from imgtool.image.header import FORMATS
from imgtool.image.names import absolute, pasted, printable
from imgtool.image.reference import protocol_of
from imgtool.qemu.img_argv import ImageOpts, Source

if TYPE_CHECKING:
    from imgtool.chain.graph import Image
    from imgtool.operations.plan import Action, Touched
    from imgtool.qemu.qemu_img import QemuImg


class Opened(NamedTuple):
    """An image of the command line, as qemu-img is given it."""

    source: Source
    name: str
    """As the user wrote it, made printable."""
    format: str | None
    """What qemu-img is told: None only for image options, which name it themselves."""
    chain: Sequence[Image] = ()
    """The image and all it stands on; empty for image options."""

    @property
    def path(self) -> str | None:
        return None if isinstance(self.source, ImageOpts) else os.fsdecode(self.source)

    @property
    def place(self) -> str:
        """The absolute path made printable: what an error calls it."""
        return self.name if self.path is None else printable(self.path)

    @property
    def top(self) -> Image | None:
        return self.chain[0] if self.chain else None


def open_image(
    name: str,
    *,
    format: str | None = None,
    image_opts: bool = False,
    opens_parents: bool = True,
    follow: bool = True,
) -> Opened:
    """The image `name`, in a chain that a QEMU program may safely open, and its format: the one given, else what its
    header says. Raises as `imgtool.chain.walk.guard`; without `follow` only for the image itself. Without
    `opens_parents` nothing is read but the image's own metadata: else RefusedError when a disk is encrypted."""
    if image_opts:
        if format is not None:
            raise UsageError("-f and --image-opts exclude each other", hint="write driver=FORMAT among the options")
        return Opened(ImageOpts(name), printable(name), None)
    from imgtool.chain.encryption import refuse_encrypted
    from imgtool.chain.walk import guard, walk

    path = absolute(name)
    native = format if format in FORMATS else None
    try:
        chain = [] if follow else walk(path, format=native)
        if not chain or chain[0].format is None:
            chain = guard(path, format=native, opens_parents=opens_parents)
    except ImageNotFoundError as error:
        raise not_found(error, name) from error
    except ImageFormatError as error:
        if error.hint is None and format is not None:
            error.hint = "without -f, its header decides"
        raise
    if opens_parents:
        refuse_encrypted(chain, image_opts=True)
    return Opened(path, printable(name), format or chain[0].format, chain)


def not_found(error: ImageNotFoundError, name: str) -> ImageNotFoundError:
    protocol = protocol_of(name)
    if protocol == "json":
        error.hint = (
            "a name is always a file's; what stands in a json: reference is written "
            "--image-opts driver=FORMAT,file.driver=PROTOCOL,…"
        )
    elif protocol is not None:
        error.hint = (
            f"a name is always a file's; for QEMU's protocol {printable(protocol)}: "
            f"--image-opts driver=FORMAT,file.driver={printable(protocol)},…"
        )
    elif error.hint is None:
        error.hint = "the name may be misspelt"
    return error


def qemu_img(context: Context, timeout: float | None = None) -> QemuImg:
    """qemu-img, stopped after `timeout` seconds where it works on no image in place."""
    from imgtool.qemu.qemu_img import QemuImg

    return QemuImg(context.programs, **context.limits(timeout))


@contextmanager
def explained(
    context: Context,
    *,
    formats: Iterable[str | None] = (),
    option_format: str | None = None,
    options: Mapping[str, object] = {},
    amend: bool = False,
) -> Iterator[None]:
    """Inside the `with` block, a failure of qemu-img that comes from an unknown format or option is reported as that.

    Nothing is asked beforehand and no message is matched: only after a failure are the formats and options of this
    qemu-img looked up, and whatever the user named that is not among them is what went wrong.
    """
    try:
        yield
    except CommandTimeout:
        raise
    except CommandError as error:
        try:
            check_formats(context, formats)
            if option_format is not None and options:
                check_options(context, option_format, options, amend=amend)
        except UsageError as better:
            raise better from error
        if error.hint is None and option_format is not None and not amend:
            error.hint = _missing_key(option_format, options)
        raise


def _missing_key(format: str, options: Mapping[str, object]) -> str | None:
    """What an encrypted image in `format` lacks; None where it has a key, or is not to be encrypted."""
    option = "key-secret" if format == "luks" else "encrypt.key-secret"
    encrypted = format == "luks" or "encrypt.format" in options or options.get("encryption") == "on"
    if not encrypted or option in options:
        return None
    return f"an encrypted image takes its passphrase from a file: --object secret,id=key,file=FILE -o {option}=key"


def check_formats(context: Context, given: Iterable[str | None]) -> None:
    """UsageError, with the nearest one, when qemu-img knows no format of a name in `given`."""
    from imgtool.qemu.img_help import formats

    wanted = [format for format in given if format is not None]
    if not wanted:
        return
    known = formats(context.programs)
    for format in wanted:
        if known and format not in known:
            images = [name for name in known if name in FORMATS]
            raise UsageError(
                f"this qemu-img has no format {printable(format)!r}",
                hint=_nearest(format, images, "it has"),
            )


def check_options(context: Context, format: str, given: Iterable[str], *, amend: bool = False) -> None:
    """UsageError, with the nearest one, when images in `format` have no option of a name in `given`."""
    from imgtool.qemu.img_help import option_help

    known = option_help(context.programs, format, amend=amend)
    for option in given:
        if option not in known:
            what = f"option {printable(option)!r}" if known else "options"
            raise UsageError(
                f"{printable(format)} images have no {what}" + (" that can be amended" if amend else ""),
                hint=_nearest(option, list(known), "there are") if known else None,
            )


def _nearest(word: str, known: Sequence[str], lead: str) -> str:
    import difflib

    near = difflib.get_close_matches(word.lower(), known, n=1)
    listed = f"{lead} {', '.join(sorted(known))}"
    return f"did you mean {near[0]!r}? {listed}" if near else listed


def nearest_name(name: str, known: Sequence[str], *, none: str) -> str:
    """A hint that lists the names there are, the nearest first; `none` when there are none."""
    if not known:
        return none
    import difflib

    near = difflib.get_close_matches(name, known, n=1)
    shown = ", ".join(printable(one) for one in known[:20]) + (", …" if len(known) > 20 else "")
    return f"did you mean {printable(near[0])!r}? there are {shown}" if near else f"there are {shown}"


def snapshot_known(opened: Opened, wanted: str) -> None:
    """ImgtoolError, with the names that exist, when `wanted` is neither name nor ID of an internal snapshot, or the
    one's name and the other's ID: qemu-img takes it for the ID here and for the name there."""
    if opened.top is None:
        return
    known = opened.top.snapshots
    by_id = [snapshot for snapshot in known if snapshot.id == wanted]
    by_name = [snapshot for snapshot in known if snapshot.name == wanted]
    if by_id and by_name and by_id[0].id != by_name[0].id:
        raise ImgtoolError(
            f"{opened.place} has a snapshot of the ID {printable(wanted)} and another one of that name",
            path=opened.path,
            hint=f"say {printable(by_id[0].name)} or {printable(by_name[0].id)}",
        )
    if by_id or by_name:
        return
    names = list(dict.fromkeys(snapshot.name or snapshot.id for snapshot in known))
    raise ImgtoolError(
        f"{opened.place} has no snapshot {printable(wanted)!r}",
        path=opened.path,
        hint=nearest_name(wanted, names, none="it has no snapshots"),
    )


def refuse_with_children(opened: Opened, *, force: bool, doing: str) -> None:
    """RefusedError when other images stand on the image, which `doing` would pull out from under them."""
    if not force and opened.path is not None:
        refuse_children(opened.path, children_of(opened.path), doing=doing)


def refuse_children(path: str, children: Sequence[str], *, doing: str) -> None:
    """RefusedError when there are `children` of the image at `path`."""
    if children:
        name = printable(path)
        raise RefusedError(
            f"{name} is the backing file of {listed(children)}: {doing} would change what is read there",
            path=path,
            hint=f"`imgtool chain show {pasted(path)}` shows what stands on it; --force does it anyway",
        )


def children_of(path: str, *, but: str | None = None) -> list[str]:
    """The images in the directories of the chain of `path` that have it as their backing file, without `but`."""
    from imgtool.chain.scan import survey

    found = survey([path] if but is None else [path, but])
    by_path = found.graph.by_path()
    left_out = by_path[found.asked[-1]].all_names if but is not None else ()
    return [child for child in by_path[found.asked[0]].children if child not in left_out]


def warn_of_children(context: Context, path: str) -> None:
    """Warns when images stand on the file at `path`, which the user said is to be replaced."""
    from imgtool.cli.output import warn

    children = children_of(path) if os.path.isfile(path) else []
    if children:
        stand = "stands" if len(children) == 1 else "stand"
        warn(context, f"{listed(children)} {stand} on {printable(path)}, and will read what takes its place")


def listed(paths: Sequence[str]) -> str:
    """The first few of `paths`, and how many there are besides."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(printable(path) for path in paths[:3]) + more


def warn_of_named_raw(context: Context, path: str, format: str | None) -> None:
    """Warns when the backing file at `path` is said to be raw, and does not look so."""
    from imgtool.cli.output import warn
    from imgtool.image.header import probe

    if format != "raw" or not os.path.isfile(path):
        return
    with open(path, "rb") as file, suppress(ImageFormatError):
        real = probe(file.read(512))
        if real != "raw":
            warn(
                context,
                f"{printable(path)} is named raw, but begins like a {real}: a guest would see that file's own bytes, "
                f"not its disk",
            )


def check_no_directory(name: str) -> None:
    """UsageError when what is to be made is a directory, or is called as only a directory is."""
    if name.endswith("/") or os.path.isdir(name):
        raise UsageError(f"{printable(name)} is the name of a directory", hint="name the new image in it")


_NAMES = {
    ".qcow2": "qcow2",
    ".qcow": "qcow",
    ".qed": "qed",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhd": "vpc",
    ".vpc": "vpc",
    ".vhdx": "vhdx",
}


def check_name(context: Context, path: str, format: str | None, option: str) -> None:
    """Warns when raw is made only because no `format` was given, under a name that promises another."""
    from imgtool.cli.output import warn

    promised = _NAMES.get(os.path.splitext(path)[1].lower())
    if format is None and promised is not None:
        warn(
            context,
            f"{printable(path)} becomes a raw image: no format is given; {option} {promised} makes what it says",
        )


def say(context: Context, value: object, lines: Iterable[str]) -> None:
    """The answer of a command that changes something: with `-q` its JSON is written, its words are not."""
    from imgtool.cli.output import emit

    if context.json or not context.quiet:
        emit(context, value, lines)


def touched(source: Source, action: Action) -> Touched:
    from imgtool.operations.plan import Touched

    return Touched(path=source.text if isinstance(source, ImageOpts) else absolute(source), action=action)


def emit_command(
    context: Context, argv: Sequence[str], images: Iterable[Touched], *, notes: Iterable[str] = ()
) -> None:
    """The answer of `--dry-run` for a command that is one run of qemu-img."""
    from imgtool.cli.plan import emit_plan
    from imgtool.operations.plan import Plan

    emit_plan(context, Plan(commands=(tuple(argv),), images=tuple(images), notes=tuple(notes)))


def print_option_help(context: Context, format: str, *, amend: bool = False) -> None:
    """The answer to `-o help`."""
    from imgtool.cli.output import emit
    from imgtool.qemu.img_help import option_help

    known = option_help(context.programs, format, amend=amend)
    if not known:
        check_formats(context, [format])
    verb = "amended in" if amend else "given for"
    head = f"Options that can be {verb} {format} images:" if known else f"{format} images have no options"
    emit(context, known, [head, *(f"  {line}" for line in known.values())])


def wants_help(options: Mapping[str, object]) -> bool:
    return "help" in options or "?" in options

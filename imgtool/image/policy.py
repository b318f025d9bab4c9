"""What an image may refer to before it is handed to QEMU: the guard in front of every command.

By default: files in its own directory and below, in directories the user trusts, and files the user named (for ever,
when imgtool made an image stand on one: `imgtool.image.remembered`); no protocol but file; formats as declared; a
chain of at most 200 images. `--trust` and the configuration widen it.

`imgtool.qemu.qemu_img` asks before each run of qemu-img and `imgtool.chain.walk.guard` before a chain is used, by the
policy that is in force (`current`), so that no command can forget it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from imgtool.errors import ChainError, ImageFormatError, PolicyError, RefusedError, UsageError
from imgtool.image import policy_source
from imgtool.image.formats import FORMATS
from imgtool.image.formats.base import Header
from imgtool.image.formats.qcow2 import Qcow2Details
from imgtool.image.header import read_header
from imgtool.image.links import PROTOCOLS, ROLE_NAMES, Link, is_below, links
from imgtool.image.names import PathLike, absolute, pasted, printable
from imgtool.image.reference import Reference

MAX_DEPTH = 200
"""Images in a chain; libvirt follows no more, and QEMU slows down and crashes above a thousand."""

FORCED_DEPTH = 1000
"""Images in a chain that qemu-img still opens: at 1,200 version 7.2 crashes."""

GUESSED_FORMATS = "guessed-formats"
"""The word that lets QEMU guess the format of a backing file which itself refers to others."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What images may refer to, beyond their own directory."""

    directories: tuple[str, ...] = ()
    """Trusted, with all below them: absolute paths."""
    files: tuple[str, ...] = ()
    """Files the user named on the command line: absolute paths."""
    protocols: frozenset[str] = frozenset()
    """Drivers other than `file`."""
    guessed_formats: bool = False
    own_references: bool = False
    """Whether references that imgtool made for this user are allowed: `imgtool.image.remembered`."""
    max_depth: int = MAX_DEPTH

    def trusting(self, words: Iterable[str]) -> Policy:
        """This policy widened by values of `--trust`: a protocol, a directory (with a slash in it), or
        `guessed-formats`. UsageError for anything else."""
        directories, protocols, guessed = list(self.directories), set(self.protocols), self.guessed_formats
        for word in words:
            if "/" in word or word in (".", ".."):
                directories.append(absolute(word))
            elif word == GUESSED_FORMATS:
                guessed = True
            elif word in PROTOCOLS:
                protocols.add(word)
            else:
                raise UsageError(
                    f"{printable(word)!r} is not something to trust",
                    hint=f"a directory is written with a slash (./{printable(word)}); "
                    f"else one of {', '.join(sorted(PROTOCOLS))}, {GUESSED_FORMATS}",
                )
        return msgspec.structs.replace(
            self, directories=tuple(directories), protocols=frozenset(protocols), guessed_formats=guessed
        )

    def naming(self, *paths: PathLike) -> Policy:
        """This policy widened by what the user named: files, and directories with everything below them."""
        places = [absolute(path) for path in paths]
        directories = [place for place in places if os.path.isdir(place)]
        return msgspec.structs.replace(
            self,
            files=(*self.files, *(place for place in places if place not in directories)),
            directories=(*self.directories, *directories),
        )

    def allows_file(self, path: str, *, directory: str) -> bool:
        """Whether an image in `directory` may refer to the file at `path`, once symlinks are followed. The root
        directory does not count as an image's own."""
        if os.path.realpath(directory) != "/" and is_below(path, directory):
            return True
        if any(is_below(path, place) for place in self.directories):
            return True
        real = os.path.realpath(path)
        if any(os.path.realpath(file) == real for file in self.files):
            return True
        if not self.own_references:
            return False
        from imgtool.image import remembered

        return remembered.knows(directory, path)


def current() -> Policy:
    """The policy in force where a caller names none: the strict one, unless set by `in_force`."""
    source = policy_source.source()
    return Policy(own_references=True) if source is None else source()


def in_force(policy: Policy) -> contextlib.AbstractContextManager[None]:
    """Inside the `with` block, `policy` is the one in force in this thread (or asynchronous task) and in those that
    imgtool starts."""
    return policy_source.deciding(lambda: policy)


def trusting(*words: str) -> contextlib.AbstractContextManager[None]:
    """Inside the `with` block, images may also refer to what these `words` of `--trust` say: a protocol such as
    `nbd`, a directory with all below it (with a slash in it), or `guessed-formats`. This applies to this thread (or
    asynchronous task) and those that imgtool starts. UsageError for any other word.

        with imgtool.trusting("nbd", "/srv/bases/"):
            imgtool.verify("/srv/images")
    """
    return in_force(current().trusting(words))


class Approved(msgspec.Struct, frozen=True, kw_only=True):
    """An image that passed, as it was read natively."""

    path: str
    format: str
    header: Header
    relative: bool = False
    """Whether it refers to a file that QEMU looks for in its current directory: see `working_directory`."""


def approve(
    path: PathLike,
    policy: Policy | None = None,
    *,
    format: str | None = None,
    parents: bool = True,
    without: Iterable[str] = (),
) -> list[Approved]:
    """Says yes to an image and all it stands on by returning them, the image first; or raises. Without `policy` the
    one in force decides. Without `parents` only what the image itself refers to is asked for, as for a program that
    does not open it; what it refers to in one of the roles `without` (`backing`, …) is not.

    Reads headers only, and follows local files; what does not exist or cannot be opened is left for QEMU to complain
    about. PolicyError when an image refers to what the policy does not allow, ImageFormatError when one is damaged,
    ChainError when the backing files go in a circle.
    """
    format = format if format in FORMATS else None
    start = _Step(path=absolute(path), format=format, above=None, given=frozenset(without))
    return _approve([start], policy or current(), parents=parents)


def approve_options(
    options: Mapping[str, str], policy: Policy | None = None, *, parents: bool = True
) -> list[Approved]:
    """As `approve`, for an image given by QEMU's block options (`driver`, `file.filename`, …). What they name is what
    the user named; what the images there refer to is asked for, unless an option takes its place."""
    return _approve(list(_named(_unfolded(options))), policy or current(), parents=parents)


def working_directory(approved: Iterable[Approved]) -> str | None:
    """Where QEMU has to be started so that relative names mean files beside the image that names them; None where it
    does not matter. RefusedError when that cannot be: two such images lie in different directories."""
    found = {os.path.dirname(image.path): image.path for image in approved if image.relative}
    if len(found) > 1:
        one, other = sorted(found.values())[:2]
        raise RefusedError(
            f"{printable(one)} and {printable(other)} both name files that QEMU looks for in its current directory",
            hint="`imgtool amend -o data_file=PATH` or `imgtool rebase -u -b PATH` gives one an absolute name",
            path=one,
        )
    return next(iter(found), None)


_Node = dict[str, Any]


def _unfolded(options: Mapping[str, str]) -> _Node:
    """`{"file.driver": "file"}` as `{"file": {"driver": "file"}}`."""
    tree: _Node = {}
    for key, value in options.items():
        *above, last = key.split(".")
        place = tree
        for word in above:
            inner = place.setdefault(word, {})
            if not isinstance(inner, dict):
                inner = place[word] = {}
            place = inner
        place[last] = value
    return tree


def _named(node: _Node) -> Iterator[_Step]:
    """The images whose headers QEMU reads because of a node and those below it."""
    driver, file = node.get("driver"), node.get("file")
    if driver in (None, *FORMATS):
        place = file if isinstance(file, dict) else node if driver is None else {}
        name = place.get("filename")
        if isinstance(name, str) and name and place.get("driver") in (None, "file", "host_device"):
            given = frozenset(role for role in ("backing", "data-file") if role in node)
            yield _Step(path=absolute(name), format=driver, above=None, given=given)
            file = None
    for key, child in node.items():
        if isinstance(child, dict) and (key != "file" or file is not None):
            yield from _named(child)


def _approve(todo: list[_Step], policy: Policy, *, parents: bool) -> list[Approved]:
    approved: list[Approved] = []
    seen: set[tuple[tuple[int, int], str]] = set()
    while todo:
        step = todo.pop()
        read = _read(step)
        if read is None:
            continue
        header, identity = read
        if (identity, header.format) in seen:
            continue  # two branches of a tree that lead to one image
        seen.add((identity, header.format))
        if len(step.ancestors) >= policy.max_depth or len(seen) > max(FORCED_DEPTH, policy.max_depth):
            raise PolicyError(
                f"{printable(approved[0].path)} stands on more than {policy.max_depth} images",
                wants=step.path,
                word=None,
                hint="flatten the chain, or a part of it",
                path=approved[0].path,
            )
        named = [link for link in links(header, directory=os.path.dirname(step.path)) if link.role not in step.given]
        relative = any(link.reference is not None and link.reference.relative for link in named)
        approved.append(Approved(path=step.path, format=header.format, header=header, relative=relative))
        if step.guessed_by is not None and named and not policy.guessed_formats:
            raise _guessed(step, header)
        for link in named:
            check_link(link, policy, path=step.path)
            if parents:
                todo += _below(link, step, identity)
    return approved


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    format: str | None
    above: str | None
    """The image that refers to this one."""
    guessed_by: str | None = None
    """The image that names no format for this one."""
    given: frozenset[str] = frozenset()
    """Roles for which something else is opened than what its header names."""
    ancestors: frozenset[tuple[int, int]] = frozenset()
    """Device and inode of every image on the way here."""


def _read(step: _Step) -> tuple[Header, tuple[int, int]] | None:
    try:
        fd = os.open(step.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            if step.above is None:
                return None
            raise _wrong_kind(step)
        identity = (status.st_dev, status.st_ino)
        if identity in step.ancestors:
            raise ChainError(
                f"the backing files of {printable(step.above or step.path)} form a cycle",
                hint="`imgtool chain show` draws the cycle; `imgtool rebase -u` breaks it",
                path=step.path,
            )
        header = read_header(fd, format=step.format, name=step.path)
        details = header.details
        if isinstance(details, Qcow2Details) and details.encryption == "luks" and details.crypto_header is None:
            raise ImageFormatError("it is encrypted by LUKS, but has no LUKS header: QEMU crashes on such images")
    except ImageFormatError as error:
        message = f"{printable(step.path)}: {error.message}"
        raise ImageFormatError(message, hint=error.hint, path=step.path) from error
    finally:
        os.close(fd)
    return header, identity


def _wrong_kind(step: _Step) -> PolicyError:
    return PolicyError(
        f"{printable(step.above or '')} wants to read {printable(step.path)}, which is not a file or block device",
        wants=step.path,
        word=None,
        hint="QEMU would wait for it forever",
        path=step.above,
    )


def check_link(link: Link, policy: Policy, *, path: str) -> None:
    """Raises PolicyError when the image at `path` must not refer to what `link` names, ImageFormatError when the name
    makes no sense."""
    what = ROLE_NAMES[link.role]
    if link.reference is None:
        raise ImageFormatError(f"the {what} of {printable(path)}: {link.error}", path=path)
    if link.role == "backing" and link.format is not None and link.format not in FORMATS:
        _check_protocol(link.format, f"the driver {printable(link.format)} for its backing format", policy, path)
    for leaf in link.leaves:
        _check_leaf(leaf, what, policy, path)


def _check_leaf(leaf: Reference, what: str, policy: Policy, path: str) -> None:
    protocol = leaf.protocol or "?"
    if protocol != "file":
        place = leaf.socket or leaf.path or leaf.host
        _check_protocol(
            protocol, f"the {what} {printable(leaf.text)}" + (f" ({printable(place)})" if place else ""), policy, path
        )
    if leaf.path is None:
        return
    if not policy.allows_file(leaf.path, directory=os.path.dirname(path)):
        folder = leaf.path if protocol == "vvfat" else os.path.dirname(os.path.realpath(leaf.path))
        word = pasted(folder)
        raise PolicyError(
            f"{printable(path)} wants the {what} {printable(leaf.path)}, which lies outside its own directory",
            wants=leaf.path,
            word=folder,
            hint=f"if you trust this image with what lies there: --trust {word}",
            path=path,
        )


def _check_protocol(protocol: str, wanted: str, policy: Policy, path: str) -> None:
    if protocol in policy.protocols:
        return
    known = protocol in PROTOCOLS
    raise PolicyError(
        f"{printable(path)} wants {wanted}",
        wants=protocol,
        word=protocol if known else None,
        hint=f"if you trust this image with it: --trust {protocol}"
        if known
        else "imgtool does not know this protocol, and lets no image use it",
        path=path,
    )


def _guessed(step: _Step, header: Header) -> PolicyError:
    above = printable(step.guessed_by or "")
    return PolicyError(
        f"{above} does not say which format its backing file {printable(step.path)} has; guessed as "
        f"{header.format} it refers to other files",
        wants=step.path,
        word=GUESSED_FORMATS,
        hint=f"name the format for good: rebase -u -F {header.format} -b …; or allow the guess: "
        f"--trust {GUESSED_FORMATS}",
        path=step.guessed_by,
    )


def _below(link: Link, above: _Step, identity: tuple[int, int]) -> list[_Step]:
    """The images that QEMU opens as images because of a link; data files and extents are bytes to it."""
    if link.role != "backing" or link.reference is None:
        return []
    steps = []
    for leaf in link.leaves:
        if leaf.path is None or leaf.protocol not in ("file", "host_device") or leaf.role.endswith("config"):
            continue
        format = link.format if leaf.role == "file" else None
        format = format if format in FORMATS else None
        steps.append(
            _Step(
                path=leaf.path,
                format=format,
                above=above.path,
                guessed_by=above.path if format is None else None,
                ancestors=above.ancestors | {identity},
            )
        )
    return steps

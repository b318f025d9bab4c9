"""What is to be copied, what of it is there, and the copying."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import msgspec

from imgtool.chain.anchors import refuse_changed
from imgtool.chain.graph import Image
from imgtool.chain.scan import scan
from imgtool.chain.truncation import refuse_truncated
from imgtool.chain.walk import guard
from imgtool.errors import ChainError, ImageError, ImageInUseError, ImageNotFoundError, RefusedError
from imgtool.image.names import PathLike, absolute, printable
from imgtool.operations.moving import allow_open_files
from imgtool.operations.plan import Plan, Touched
from imgtool.publish.oci.parallel import Meter
from imgtool.publish.replica import Counter, Replica, refuse_portable, replicate
from imgtool.publish.sync.far import Far, Seen, Wanted, parse_place
from imgtool.publish.sync.ssh import Ssh
from imgtool.qemu.process import Runner, run

Progress = Callable[[float], None]
State = Literal["present", "copied", "sent"]
_MOST_STRETCHES = 400
"""As many as are named in one command line."""


class SyncedImage(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One image, here and there."""

    path: str
    """The image here."""
    name: str
    """Below the folder there."""
    digest: str
    """Of its bytes there."""
    size: int
    """Bytes of the file."""
    state: State
    """present: it was there. copied: another image there has the same bytes. sent: they came from here."""
    sent_bytes: int = 0
    """How many were sent; less than `size` where a part was there or is zeros."""


class Synced(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The result of a sync."""

    host: str
    """The other host, as ssh calls it."""
    folder: str
    """The folder there."""
    images: tuple[SyncedImage, ...]
    """Each after what it stands on."""
    sent_bytes: int
    """How many were sent of all images."""


class _Job(NamedTuple):
    """What is to be done for one image."""

    one: Replica
    look: Seen
    state: State
    stretches: tuple[tuple[int, int], ...] = ()
    """What has to be sent: (offset, length)."""
    twin: str | None = None
    """The image there that has the same bytes, by then."""

    @property
    def bytes(self) -> int:
        """That are sent."""
        return sum(length for _, length in self.stretches)

    def answer(self) -> SyncedImage:
        return SyncedImage(
            path=self.one.path,
            name=self.one.name,
            digest=f"sha256:{self.one.sha256}",
            size=self.one.size,
            state=self.state,
            sent_bytes=self.bytes,
        )


class SyncRequest:
    """Chains that may be copied: they were looked at here, and nothing was done there."""

    def __init__(
        self,
        source: PathLike,
        place: str,
        *,
        format: str | None = None,
        ssh: Ssh | None = None,
        force: bool = False,
        runner: Runner = run,
    ) -> None:
        """The chain of the image `source`, or those of all images in the directory `source`, to `place` (HOST:DIR).
        Images of the directory keep their places below it; what they stand on elsewhere goes to the top.

        Raises as `guard`; RefusedError when an image keeps its data in several files, is on no file of this host, or
        (unless `force`) does not stand on the disk it was made on, or its end is missing."""
        self.source = absolute(source)
        self.place = parse_place(place)
        self.far = Far(self.place, ssh or Ssh(), runner)
        self.notes: list[str] = []
        self.chains = list(self._chains(format))
        for chain in self.chains:
            refuse_portable(chain)
            if not force:
                refuse_truncated(chain)
            self.notes += [note for note in refuse_changed(chain, force=force) if note not in self.notes]
        self.names = self._names()

    def _chains(self, format: str | None) -> Iterator[list[Image]]:
        if not os.path.isdir(self.source):
            yield guard(self.source, format=format)
            return
        found = False
        for image in scan([self.source]).images:
            if image.format is None or not _is_below(image.path, self.source):
                continue
            found = True
            yield guard(image.path, format=image.format)
            yield from self._other_chains(image)
        if not found:
            raise RefusedError(f"there are no images in {printable(self.source)}", path=self.source)

    def _other_chains(self, image: Image) -> Iterator[list[Image]]:
        """Those by the image's other names in the directory, each of which becomes a file of its own. No name that
        is a symbolic link, or below which the image does not find what it stands on."""
        for path in image.other_names or ():
            if not _is_below(path, self.source):
                continue
            with contextlib.suppress(ChainError, ImageNotFoundError):
                if not os.path.islink(path):
                    yield guard(path, format=image.format)
                    continue
            self.notes.append(f"{printable(path)}, another name of {printable(image.path)}, is left out")

    def _names(self) -> dict[str, str]:
        """Where each image goes. RefusedError when two would be one."""
        root = self.source if os.path.isdir(self.source) else None
        names: dict[str, str] = {}
        for image in (image for chain in self.chains for image in chain):
            inside = root is not None and _is_below(image.path, root)
            names[image.path] = os.path.relpath(image.path, root) if inside else os.path.basename(image.path)
        taken: dict[str, str] = {}
        for path, name in names.items():
            if name in taken:
                raise RefusedError(
                    f"{printable(taken[name])} and {printable(path)} would both be {printable(name)} there",
                    hint="rename one of them: `imgtool chain move`",
                    path=path,
                )
            taken[name] = path
        return names

    def plan(self) -> Plan:
        """Looks at the other host too, and changes nothing there."""
        with contextlib.ExitStack() as stack:
            images = [
                Touched(path=job.one.path, action="read", bytes=None if job.state == "present" else job.bytes)
                for job in self._jobs(stack, lambda _: None)
            ]
            sent = sum(image.bytes or 0 for image in images)
        where = f"{self.place.host}:{self.place.folder}"
        lacking = sum(1 for image in images if image.bytes is not None)
        notes = (*self.notes, f"{printable(where)} lacks {lacking} of {len(images)} images")
        return Plan(commands=(), images=tuple(images), notes=notes, total=sent)

    def _jobs(self, stack: contextlib.ExitStack, progress: Counter) -> list[_Job]:
        """Each image, and what is to be done for it, over the connection that is there until `stack` ends.
        RefusedError when there is another at its place. `progress` gets the bytes that were read for digests."""
        stack.enter_context(self.far.connected())
        made: dict[str, Replica] = {}
        allow_open_files(len(self.names))
        for chain in self.chains:
            replicate(stack, chain, lambda path, _digest, _format: self.names[path], made, progress)
        replicas = list(made.values())
        looks = self.far.look([_wanted(one) for one in replicas])
        twins = {one.sha256: one.name for one, look in zip(replicas, looks, strict=True) if look.sha256 == one.sha256}
        jobs = []
        for one, look in zip(replicas, looks, strict=True):
            if look.sha256 == one.sha256:
                jobs.append(_Job(one, look, "present"))
                continue
            if look.size is not None:
                raise RefusedError(
                    f"there is another {printable(one.name)} in {printable(self.place.host)}:"
                    f"{printable(self.place.folder)} already",
                    hint="choose another directory, or remove it there if nothing stands on it",
                    path=one.path,
                )
            twin = twins.setdefault(one.sha256, one.name)
            if twin != one.name:
                jobs.append(_Job(one, look, "copied", twin=twin))
            else:
                jobs.append(_Job(one, look, "sent", tuple(missing_stretches(list(one.data()), look.part_size))))
        return jobs

    def make(self, *, progress: Progress | None = None) -> Synced:
        """Copies what is missing. CommandError in ssh's words when the connection breaks."""
        show = progress or (lambda _: None)
        with contextlib.ExitStack() as stack:
            # All is read for its digest, then what is missing once more: half of the way each.
            size = sum({image.path: _size(image) for chain in self.chains for image in chain}.values())
            jobs = self._jobs(stack, Meter(size, lambda percent: show(percent / 2)).add)
            show(50.0)
            meter = Meter(sum(job.bytes for job in jobs), lambda percent: show(50 + percent / 2))
            for job in jobs:
                if job.state != "present":
                    self._send(job, meter)
            self.far.tidy([_wanted(job.one) for job in jobs if job.state == "present" and job.look.parts])
            show(100.0)
        return Synced(
            host=self.place.host,
            folder=self.place.folder,
            images=tuple(job.answer() for job in jobs),
            sent_bytes=sum(job.bytes for job in jobs),
        )

    def _send(self, job: _Job, meter: Meter) -> None:
        one, status = job.one, job.one.status
        try:
            self.far.send(
                one.blob,
                job.stretches,
                wanted=_wanted(one),
                part=job.look.part,
                twin=job.twin,
                mode=status.st_mode & 0o777,
                time=f"@{status.st_mtime_ns // 10**9}.{status.st_mtime_ns % 10**9:09d}",
                progress=meter.add,
            )
        except ImageError as error:
            error.path = one.path
            now = os.fstat(one.fd)
            if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                raise ImageInUseError(
                    f"{printable(one.path)} was changed while it was sent, and nothing of it got a name there",
                    hint="run it again when no program writes it",
                    path=one.path,
                ) from error
            raise


def sync(
    source: PathLike,
    place: str,
    *,
    format: str | None = None,
    ssh: Ssh | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Synced:
    """Copies the chain of the image `source`, or those of all images in the directory `source`, to `place` (HOST:DIR)
    over ssh: only what is not there yet, verified by its digest, and relinked there. Images of the directory keep
    their places below it; images elsewhere that they stand on go to the top of DIR.

    Raises as `guard`; RefusedError when an image keeps its data in several files, is not a file of this host, or its
    place there is taken by another image, and, unless `force` is set, when it does not stand on the disk it was made
    on or is cut short; CommandError in ssh's words when the connection breaks: another call goes on from there.
    """
    return SyncRequest(source, place, format=format, ssh=ssh, force=force).make(progress=progress)


def missing_stretches(data: Sequence[tuple[int, int]], have: int) -> list[tuple[int, int]]:
    """(offset, length) of what has to be sent of the `data` (start, end), of which all before `have` is there. Only
    as many as one command line holds: the smallest holes are sent along."""
    left = [[max(start, have), end] for start, end in data if end > have]
    while len(left) > _MOST_STRETCHES:
        gaps = sorted(after[0] - before[1] for before, after in pairwise(left))
        most = gaps[len(left) - _MOST_STRETCHES - 1]
        merged = [left[0]]
        for stretch in left[1:]:
            if stretch[0] - merged[-1][1] <= most:
                merged[-1][1] = stretch[1]
            else:
                merged.append(stretch)
        left = merged
    return [(start, end - start) for start, end in left]


def _size(image: Image) -> int:
    """A device has no size as a file has."""
    return os.stat(image.path).st_size or image.virtual_size or 0


def _wanted(one: Replica) -> Wanted:
    return Wanted(one.name, one.size, one.sha256)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")

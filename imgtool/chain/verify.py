"""Every defect of a store in one pass: what is wrong, which images it hurts, and the command that mends it.

Headers are read natively as in a scan, 10,000 of them in a quarter of a second; only `deep` starts programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from imgtool.chain.findings import Finding, Severity, finding
from imgtool.chain.graph import Image, descendants
from imgtool.chain.health import Anchored, Health
from imgtool.chain.hidden import hidden_findings
from imgtool.chain.remedies import Remedies
from imgtool.chain.scan import Survey, absolute, check_asked, survey
from imgtool.chain.steady import steadily
from imgtool.image.locks import holders_of
from imgtool.image.names import Paths, paths_of, printable
from imgtool.image.policy import current

if TYPE_CHECKING:
    from imgtool.qemu.qemu_img import QemuImg

_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


class Defect(msgspec.Struct, frozen=True, kw_only=True, gc=False, rename="kebab"):
    """One thing that is wrong, or worth knowing."""

    code: str
    """A key of `imgtool.chain.findings.KINDS`, which says what it means."""
    severity: Severity
    """error: reading it fails or gives something wrong. warning: it may. info: good to know."""
    path: str | None
    """The image, file or directory that carries it; None for the store as a whole."""
    message: str
    """What was found, in words, with the names concerned."""
    images: tuple[str, ...] = ()
    """Whoever reads these cannot, or reads something wrong: the image and those that stand on it."""
    repair: tuple[str, ...] | None = None
    """The command that mends it."""
    automatic: bool = False
    """Whether `chain repair` does it by itself."""
    hint: str | None = None
    """What to do where no one command does it."""


class Verification(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What verifying a store found, the gravest first."""

    images: int
    """How many were looked at."""
    checked: int
    """How many of them QEMU checked, with `deep`."""
    errors: int
    """How many of the defects are errors."""
    warnings: int
    """How many of the defects are warnings."""
    defects: tuple[Defect, ...]
    """The gravest first."""


class _Look(NamedTuple):
    found: Survey
    health: Health
    hidden: list[tuple[str, Finding]]


class Verified:
    """A verified store: the answer, and the graph behind it for the repair that may follow."""

    def __init__(
        self,
        paths: Paths,
        *,
        store: Paths = (),
        format: str | None = None,
        deep: QemuImg | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        """See `verify`; `deep` is what looks deeper."""
        paths, store = paths_of(paths), paths_of(store)
        policy = current().naming(*paths, *store)

        def look() -> _Look:
            health = Health()
            found = survey(paths, store=store, format=format, notice=health.notice, policy=policy)
            for one in health.anchored:
                _tell_anchor(one, health)
            return _Look(found, health, list(hidden_findings(found.hidden)))

        found, self.health, self.hidden = steadily(
            look, lambda seen: seen.found.graph, hidden=lambda seen: [path for path, _ in seen.hidden]
        )
        check_asked(found)
        self.graph = found.graph
        self.by_path = self.graph.by_path()
        self._tell_uses()
        self._tell_strays([absolute(path) for path in (*paths, *store)])
        self.checked = 0
        if deep is not None:
            from imgtool.chain.deep import check_images, compare_contents
            from imgtool.chain.remote import look_at_remote

            look_at_remote(self.graph, deep, policy)
            self.checked = check_images(self.graph, deep, policy, progress)
            compare_contents(self.by_path, self.health, deep, policy)

    def _tell_uses(self) -> None:
        used = [image for image in self.graph.images if image.in_use is not None]
        programs = holders_of(image.path for image in used) if used else {}
        for image in used:
            who = ", ".join(f"{printable(one.program)} (pid {one.pid})" for one in programs[image.path])
            how = "for writing" if image.in_use == "write" else "for reading"
            image.add(finding("in-use", f"in use {how} by {who or 'another process'}"))
        for image in self.graph.images:
            self._tell_larger(image)
            if image.snapshots:
                count = len(image.snapshots)
                what = "an internal snapshot keeps" if count == 1 else f"{count} internal snapshots keep"
                image.add(finding("snapshots", f"{what} the space of what the disk was"))

    def _tell_larger(self, image: Image) -> None:
        parent = self.by_path.get(image.parent) if image.parent is not None else None
        size, below = image.virtual_size, None if parent is None else parent.virtual_size
        if size is not None and below is not None and size > below:
            image.add(finding("overlay-larger", f"{size} bytes on a backing file of {below} bytes"))

    def _tell_strays(self, named: list[str]) -> None:
        """Images whose backing file lies outside the directories that were named."""
        stores = [os.path.realpath(path) + "/" for path in named if os.path.isdir(path)]
        if not stores:
            return
        inside: dict[str, bool] = {}
        for image in self.graph.images:
            if image.parent is None or not image.parent.startswith("/"):
                continue
            for path in (image.path, image.parent):
                folder = os.path.dirname(path)
                if folder not in inside:
                    real = os.path.realpath(folder) + "/"
                    inside[folder] = any(real.startswith(store) for store in stores)
            if inside[os.path.dirname(image.path)] and not inside[os.path.dirname(image.parent)]:
                image.add(
                    finding(
                        "outside-store", f"the backing file {printable(image.parent)} lies outside of what was named"
                    )
                )

    def answer(self) -> Verification:
        defects = sorted(self._defects(), key=lambda one: (_ORDER[one.severity], one.path or "", one.code))
        return Verification(
            images=sum(image.format is not None for image in self.graph.images),
            checked=self.checked,
            errors=sum(one.severity == "error" for one in defects),
            warnings=sum(one.severity == "warning" for one in defects),
            defects=tuple(defects),
        )

    def _defects(self) -> Iterator[Defect]:
        remedies = Remedies(self.by_path, self.health)
        children = {image.path: image.children for image in self.graph.images}
        for image in self.graph.images:
            for found in image.findings:
                if found.code == "broken-chain" or (
                    found.code == "missing" and (image.children or image.data_file_of)
                ):
                    continue  # reported where it comes from
                hurt: tuple[str, ...] = ()
                if found.severity == "error":
                    hurt = tuple(sorted(descendants(children, [image.path])))
                remedy = remedies.of(found, image)
                yield _defect(found, image.path, hurt, remedy.command, remedy.automatic, remedy.hint)
        for found in self.graph.findings:
            yield _defect(found, None)
        for path, found in self.hidden:
            command = ("imgtool", "chain", "repair", "--only", found.code, os.path.dirname(path))
            yield _defect(found, path, repair=command, automatic=True)


def _defect(
    found: Finding,
    path: str | None,
    images: tuple[str, ...] = (),
    repair: tuple[str, ...] | None = None,
    automatic: bool = False,
    hint: str | None = None,
) -> Defect:
    return Defect(
        code=found.code,
        severity=found.severity,
        path=path,
        message=found.message,
        images=images,
        repair=repair,
        automatic=automatic,
        hint=hint,
    )


def _tell_anchor(one: Anchored, health: Health) -> None:
    image = one.image
    state = health.state(one)
    parent = printable(image.parent or "")
    if state == "changed":
        image.add(finding("parent-changed", f"{parent} is not the disk that the overlay was made on"))
    elif state == "written":
        image.add(finding("parent-written", f"{parent} was written after the overlay was made on it"))
    elif state == "copied":
        image.add(finding("parent-copied", f"{parent} is a copy of the file that the overlay was made on"))
    elif state == "stale":
        image.add(finding("anchor-stale", f"it was put on {parent} by a program that knows no anchors"))


def verify(
    paths: Paths,
    *,
    store: Paths = (),
    format: str | None = None,
    deep: bool = False,
    qemu_img: QemuImg | None = None,
    progress: Callable[[float], None] | None = None,
) -> Verification:
    """Looks at the images in the directories among `paths` and below, and at the other `paths` with their chains and
    what stands on them, as `imgtool.scan` does.

    With `deep` each image's tables are checked too, several at a time, and the content of every parent is compared
    with what its overlays remember of it; parents that a protocol leads to are opened, where the policy allows it.
    Raises nothing for what is found, except ImageNotFoundError or ImageUnreadableError for an image among `paths` of
    which nothing can be said.
    """
    if deep and qemu_img is None:
        from imgtool.qemu.qemu_img import QemuImg

        qemu_img = QemuImg()
    return Verified(paths, store=store, format=format, deep=qemu_img if deep else None, progress=progress).answer()

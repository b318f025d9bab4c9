"""What mends a defect: a command that can be pasted, and whether `chain repair` does it by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from imgtool.chain.anchors import is_parent, state_of
from imgtool.chain.findings import Finding
from imgtool.chain.graph import Image
from imgtool.chain.health import Anchored, Health
from imgtool.image.names import pasted, printable


class Remedy(NamedTuple):
    command: tuple[str, ...] | None = None
    automatic: bool = False
    hint: str | None = None


class Found(NamedTuple):
    """A file that may be the missing backing file."""

    path: str
    format: str
    sure: bool
    """Whether the overlay remembers this very disk; else only its name is right, or it looks the same."""


_NAMED_BY_HAND = "`imgtool rebase -u --force -b BASE -F FORMAT {word}` puts it on another backing file"

_HINTS = {
    "cycle": "`imgtool rebase -u --force -b BASE -F FORMAT {word}` would open the circle",
    "self-reference": "`imgtool rebase -u --force -b BASE -F FORMAT {word}` puts it on the right one",
    "truncated": "what is missing is in a backup of {name}, or nowhere",
    "unknown-feature": "a newer QEMU may open it",
    "data-file-missing": "the data of {name} is in that file: bring it back",
    "data-file-unusable": "the data of {name} is in that file: make it readable",
    "duplicate-name": "changes through one name are changes through all of them",
    "snapshots": "`imgtool snapshot -l {word}` lists them, `imgtool snapshot -d SNAPSHOT {word}` deletes one",
    "backing-format-doubtful": "if no guest wrote those bytes, `imgtool rebase -u -F FORMAT -b BASE {word}` says so",
}


class Remedies:
    def __init__(self, by_path: Mapping[str, Image], health: Health) -> None:
        self._by_path = by_path
        self._anchors: dict[str, Anchored] = {one.image.path: one for one in health.anchored}
        self._names: dict[str, list[Image]] | None = None
        self._sizes: dict[int, list[Image]] | None = None

    def of(self, found: Finding, image: Image) -> Remedy:
        path, code = image.path, found.code
        if code in _OWN:
            return getattr(self, _OWN[code])(image)  # type: ignore[no-any-return]
        if code in ("dirty", "leaks"):
            return _automatic(code, path)
        if code in ("corrupt", "damaged"):
            command = ("imgtool", "check", "-r", "all", "-f", image.format or "qcow2", path)
            return Remedy(command, hint=f"copy {printable(path)} first: a repair can lose data")
        if code in ("parent-changed", "anchor-stale"):
            return Remedy(("imgtool", "chain", "anchor", path), hint="that takes the backing file as it is now")
        if code == "too-deep":
            return Remedy(("imgtool", "chain", "flatten", path))
        hint = _HINTS.get(code)
        return Remedy(hint=None if hint is None else hint.format(name=printable(path), word=pasted(path)))

    def missing_parent(self, image: Image) -> Remedy:
        found = self.candidate(image)
        if found is None:
            return Remedy(hint=_NAMED_BY_HAND.format(word=pasted(image.path)))
        if found.sure:
            return _automatic("missing-parent", image.path)
        command = ("imgtool", "rebase", "-u", "--force", "-b", found.path, "-F", found.format, image.path)
        return Remedy(command, hint=f"{printable(found.path)} may be it; look at it first")

    def format_of_parent(self, image: Image) -> Remedy:
        code = next(
            one.code for one in image.findings if one.code in ("backing-format-missing", "backing-format-wrong")
        )
        parent = self._by_path.get(image.parent or "")
        if parent is None or parent.format is None or image.format not in ("qcow2", "qed"):
            return Remedy(hint=_NAMED_BY_HAND.format(word=pasted(image.path)))
        return _automatic(code, image.path)

    def written_parent(self, image: Image) -> Remedy:
        one = self._anchors.get(image.path)
        if one is not None and one.anchor.content is not None:
            return Remedy(("imgtool", "chain", "anchor", "--deep", image.path), automatic=True)
        return Remedy(("imgtool", "chain", "anchor", image.path), hint="that takes the backing file as it is now")

    def small_overlay(self, image: Image) -> Remedy:
        parent = self._by_path.get(image.parent or "")
        if parent is None or parent.virtual_size is None:
            return Remedy()
        return Remedy(("imgtool", "resize", image.path, str(parent.virtual_size)))

    def stray(self, image: Image) -> Remedy:
        if image.parent is None:
            return Remedy()
        return Remedy(("imgtool", "chain", "move", image.parent, os.path.dirname(image.path) + "/"))

    def candidate(self, image: Image) -> Found | None:
        """The one file among those looked at that may be the missing backing file of `image`."""
        one = self._anchors.get(image.path)
        backing = image.backing
        if one is not None and one.anchor.reference == one.reference:
            found = self._by_anchor(image, one)
            if found is not None:
                return found
        if backing is None or backing.path is None:
            return None
        same = [
            other
            for other in self._named(os.path.basename(backing.path))
            if other is not image and (backing.format in (None, other.format))
        ]
        return Found(same[0].path, same[0].format or "raw", sure=False) if len(same) == 1 else None

    def _by_anchor(self, image: Image, one: Anchored) -> Found | None:
        """The file that `image` remembers, or the one that only looks the same."""
        alike = []
        for other in self._of_size(one.anchor.size):
            found = Found(other.path, one.parent_format or other.format or "raw", sure=False)
            if other is image:
                continue
            if is_parent(one.anchor, other.path, parent_format=found.format):
                return found._replace(sure=True)
            state = state_of(one.anchor, one.reference, other.path, parent_format=found.format)
            alike += [found] if state in ("same", "copied") else []
        return alike[0] if len(alike) == 1 else None

    def _named(self, name: str) -> list[Image]:
        if self._names is None:
            self._names = {}
            for image in self._by_path.values():
                if image.format is not None:
                    here = self._names.setdefault(os.path.basename(image.path), [])
                    if image not in here:
                        here.append(image)
        return self._names.get(name, [])

    def _of_size(self, size: int) -> list[Image]:
        if self._sizes is None:
            self._sizes = {}
            for image in {id(image): image for image in self._by_path.values()}.values():
                if image.format is not None:
                    try:
                        self._sizes.setdefault(os.stat(image.path).st_size, []).append(image)
                    except OSError:
                        continue
        return self._sizes.get(size, [])


_OWN = {
    "missing-parent": "missing_parent",
    "backing-format-missing": "format_of_parent",
    "backing-format-wrong": "format_of_parent",
    "parent-written": "written_parent",
    "parent-copied": "written_parent",
    "overlay-smaller": "small_overlay",
    "outside-store": "stray",
}


def _automatic(code: str, path: str) -> Remedy:
    return Remedy(("imgtool", "chain", "repair", "--only", code, path), automatic=True)

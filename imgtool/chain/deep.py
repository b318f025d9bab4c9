"""The part of verifying that reads more than headers: QEMU's own check of each image, and the contents of parents."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import msgspec

from imgtool.chain.content import layers_of
from imgtool.chain.findings import finding
from imgtool.chain.graph import Graph, Image
from imgtool.chain.health import Health
from imgtool.chain.walk import guard
from imgtool.errors import ImgtoolError
from imgtool.image.names import printable
from imgtool.image.policy import Policy, approve
from imgtool.qemu.digest import content_digest
from imgtool.qemu.img_argv import ImageOpts
from imgtool.qemu.process import workers
from imgtool.qemu.qemu_img import QemuImg
from imgtool.qemu.results import CheckResult

CHECKED = frozenset(("qcow2", "qed", "vmdk", "vdi", "vhdx", "parallels"))
"""Formats whose consistency QEMU can check."""

Progress = Callable[[float], None]


def check_images(graph: Graph, qemu_img: QemuImg, policy: Policy, progress: Progress | None = None) -> int:
    """Has QEMU check the tables of every image that has some, as many at a time as there are processors, and notes
    what it finds. An image is checked by itself: what it stands on is not opened, so no chain can hold it up.
    Returns how many were checked."""
    wanted = [image for image in graph.images if image.format in CHECKED and image.path.startswith("/")]
    whole = sum(_weight(image) for image in wanted) or 1
    done = checked = 0
    with workers(os.cpu_count() or 1) as pool:
        results = pool.map(lambda image: _check(image, qemu_img, policy), wanted)
        for image, result in zip(wanted, results, strict=True):
            _tell(image, result)
            checked += not isinstance(result, ImgtoolError)
            done += _weight(image)
            if progress is not None:
                progress(100 * done / whole)
    return checked


def _weight(image: Image) -> int:
    return (image.actual_size or 0) + 4096


def alone(image: Image) -> ImageOpts:
    """The image without what it stands on. Source: QEMU's block.c, where an empty name of the backing node means that
    there is none; it says so on stderr too, calling it deprecated (5.2 to 10.0)."""
    options: dict[str, str | int | bool] = {
        "driver": image.format or "raw",
        "file.driver": "file",
        "file.filename": image.path,
    }
    if image.data_file is not msgspec.UNSET and image.data_file.path is not None:
        options |= {"data-file.driver": "file", "data-file.filename": image.data_file.path}
    if image.backing is not None:
        options["backing"] = ""
    return ImageOpts.of(options)


def _check(image: Image, qemu_img: QemuImg, policy: Policy) -> CheckResult | ImgtoolError:
    if image.in_use == "write":
        return ImgtoolError("it is in use for writing")
    try:
        approve(image.path, policy, format=image.format, parents=False)
        return qemu_img.check(alone(image))
    except ImgtoolError as error:
        return error


def _without_warnings(message: str) -> str:
    """What went wrong, without what QEMU says about the options of `alone`."""
    lines = message.splitlines()
    return "\n".join([line for line in lines if not line.startswith("qemu-img: warning: ")]) or message


def _tell(image: Image, result: CheckResult | ImgtoolError) -> None:
    if isinstance(result, ImgtoolError):
        image.add(finding("check-failed", f"it was not checked: {_without_warnings(result.message)}"))
        return
    report = result.report
    if report is None or result.status == "clean":
        return
    if report.corruptions or report.check_errors:
        count = (report.corruptions or 0) + report.check_errors
        image.add(finding("damaged", f"{count} {'contradiction' if count == 1 else 'contradictions'} in its tables"))
    if report.leaks:
        what = "1 cluster" if report.leaks == 1 else f"{report.leaks} clusters"
        image.add(finding("leaks", f"{what} that nothing uses"))


def compare_contents(by_path: Mapping[str, Image], health: Health, qemu_img: QemuImg, policy: Policy) -> None:
    """Reads every parent whose content an overlay remembers. What was only suspected is then known."""
    digests: dict[str, str | None] = {}
    for one in health.anchored:
        parent = one.image.parent
        if one.anchor.content is None or parent is None or health.state(one) in ("stale", "none"):
            continue
        if parent not in digests:
            digests[parent] = _digest(one.image, parent, one.parent_format, qemu_img, policy)
        found = digests[parent]
        if found is None:
            continue
        suspected = ("parent-written", "parent-copied", "parent-changed")
        kept = [found for found in one.image.findings if found.code not in suspected]
        had = len(one.image.findings) != len(kept)
        one.image.findings = tuple(kept)
        name = printable(parent)
        if found != one.anchor.content:
            one.image.add(finding("parent-changed", f"{name} holds another disk than the one it was made on"))
        elif had:
            one.image.add(finding("parent-copied", f"{name} was written or copied, but holds the same disk"))


def _digest(image: Image, parent: str, format: str | None, qemu_img: QemuImg, policy: Policy) -> str | None:
    try:
        approve(image.path, policy, format=image.format)
        chain = guard(parent, format=format, policy=policy)
        return content_digest(qemu_img, layers_of(chain), chain[0].virtual_size or 0)
    except ImgtoolError as error:
        image.add(finding("check-failed", f"the content of {printable(parent)} was not compared: {error.message}"))
        return None

"""What can go wrong with a store, as commands are typed: what is refused and what is said, and that every image reads
what it must, by the digest of the raw stream."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from imgtool.cli.main import main
from imgtool.operations.overlay import new_overlay
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg
from tests.faults.disks import digest

pytestmark = pytest.mark.matrix

SIZE = 1 << 20

UNREADABLE = ("orphan.qcow2", "loop-a.qcow2", "loop-b.qcow2", "self.qcow2", "on-loop.qcow2", "data.qcow2", "data.raw")
"""Images whose content the native reader of the tests does not reach."""


def write(path: Path, *written: tuple[int, int], format: str = "qcow2") -> None:
    words = [word for piece, byte in written for word in ("-c", f"write -P {byte} {piece * 64}k 64k")]
    argv = [Programs().find("qemu-io"), "-f", format, *words, str(path)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def data_image(store: Path) -> None:
    """An overlay with an external data file, which it names absolutely."""
    QemuImg().create(
        store / "data.qcow2",
        format="qcow2",
        backing="under-data.qcow2",
        backing_format="qcow2",
        data_file=store / "data.raw",
    )


def build(store: Path) -> None:
    """A store with everything in it that can hurt."""
    img = QemuImg()

    def base(name: str, *written: tuple[int, int], size: int = SIZE, format: str = "qcow2") -> None:
        img.create(store / name, size, format=format)
        write(store / name, *written, format=format)

    def overlay(name: str, on: str, *written: tuple[int, int], size: int | None = None) -> None:
        new_overlay(store / on, store / name, size=size)
        write(store / name, *written)

    base("base.qcow2", (0, 1), (1, 1))
    overlay("mid.qcow2", "base.qcow2", (1, 2))
    overlay("top.qcow2", "mid.qcow2", (2, 3))
    overlay("leaf.qcow2", "top.qcow2", (3, 4))
    overlay("sibling.qcow2", "base.qcow2", (0, 5))
    base("other.qcow2", (0, 6), (5, 6))
    overlay("on-other.qcow2", "other.qcow2", (1, 7))
    base("small.qcow2", (0, 8), size=SIZE // 2)
    base("plain.img", (0, 9), format="raw")
    overlay("on-plain.qcow2", "plain.img", (1, 10))
    overlay("larger.qcow2", "small.qcow2", (12, 11), size=SIZE)
    base("sealed.qcow2", (0, 12))
    overlay("on-sealed.qcow2", "sealed.qcow2", (1, 13))
    (store / "sealed.qcow2").chmod(0o444)
    base("under-snapshots.qcow2", (0, 14))
    overlay("snapshots.qcow2", "under-snapshots.qcow2", (1, 15))
    img.snapshot_create(store / "snapshots.qcow2", "kept")
    write(store / "snapshots.qcow2", (1, 16))
    base("written.qcow2", (0, 17))
    overlay("on-written.qcow2", "written.qcow2", (1, 18))
    write(store / "written.qcow2", (6, 19))
    base("two-names.qcow2", (0, 20))
    overlay("on-two-names.qcow2", "two-names.qcow2", (1, 21))
    os.link(store / "two-names.qcow2", store / "second-name.qcow2")
    base("under-data.qcow2", (0, 22))
    data_image(store)
    for name, on in (
        ("orphan", "gone"),
        ("loop-a", "loop-b"),
        ("loop-b", "loop-a"),
        ("self", "self"),
        ("on-loop", "loop-a"),
    ):
        img.create(
            store / f"{name}.qcow2",
            SIZE,
            format="qcow2",
            backing=f"{on}.qcow2",
            backing_format="qcow2",
            unsafe_backing=True,
        )
    shutil.copyfile(store / "base.qcow2", store / "copy-of-base.qcow2")


class Case(NamedTuple):
    words: str
    """What is typed after `imgtool`, in the store's directory."""
    status: int = 0
    said: Sequence[str] = ()
    """Parts of what is said, on stdout or stderr."""
    reads: Mapping[str, str | None] = {}
    """Image → the image whose content it has afterwards, as that was before; None when it is gone. All others read as
    before."""


REFUSED = 1
NO_SENSE = 2

CASES: dict[str, Case] = {
    # commit
    "commit with a sibling": Case(
        "commit mid.qcow2", REFUSED, ["sibling.qcow2", "--preserve-siblings", "imgtool convert", "--force"]
    ),
    "commit with a sibling preserved": Case(
        "commit --preserve-siblings mid.qcow2", reads={"base.qcow2": "mid.qcow2"}, said=["sibling.qcow2 reads what"]
    ),
    "commit through overlay": Case("overlay commit leaf.qcow2", reads={"top.qcow2": "leaf.qcow2"}),
    "commit under an overlay": Case("commit top.qcow2", reads={"mid.qcow2": "top.qcow2"}),
    "commit two levels down with a sibling": Case("commit -b base.qcow2 top.qcow2", REFUSED, ["sibling.qcow2"]),
    "commit two levels down": Case(
        "commit -b mid.qcow2 leaf.qcow2",
        reads={"mid.qcow2": "leaf.qcow2", "top.qcow2": "leaf.qcow2"},
        said=["top.qcow2 reads the committed data as well"],
    ),
    "commit into an image elsewhere": Case(
        "commit -b other.qcow2 top.qcow2", REFUSED, ["does not stand on", "it stands on"]
    ),
    "commit of a base": Case("commit base.qcow2", REFUSED, ["no backing file"]),
    "commit into a sealed base": Case("commit --force on-sealed.qcow2", REFUSED, ["sealed"]),
    "commit of a larger overlay": Case(
        "commit larger.qcow2", reads={"small.qcow2": "larger.qcow2"}, said=["has 1 MiB (1048576 bytes) now"]
    ),
    "commit into a raw base": Case("commit on-plain.qcow2", reads={"plain.img": "on-plain.qcow2"}),
    "commit with snapshots": Case("commit snapshots.qcow2", REFUSED, ["kept", "--force"]),
    "commit into a base written since": Case("commit on-written.qcow2", REFUSED, ["written.qcow2", "--force"]),
    "commit into a base with two names": Case("commit on-two-names.qcow2", REFUSED, ["2 names"]),
    "commit with a data file": Case("commit data.qcow2", REFUSED, ["another file"]),
    "commit of an orphan": Case("commit orphan.qcow2", REFUSED, ["gone.qcow2"]),
    "commit in a circle": Case("commit loop-a.qcow2", REFUSED, ["never ends"]),
    "commit of nothing": Case("commit none.qcow2", REFUSED, ["does not exist"]),
    "commit with a wrong format": Case("commit -f vmdk top.qcow2", REFUSED, ["looks like qcow2"]),
    "commit with a format nobody has": Case("commit -f qcow3 top.qcow2", NO_SENSE, ["qcow3"]),
    # rebase
    "rebase onto another base": Case("rebase -b other.qcow2 top.qcow2"),
    "rebase onto a smaller base": Case("rebase -b small.qcow2 top.qcow2"),
    "rebase onto a raw base": Case("rebase -b plain.img -F raw top.qcow2"),
    "rebase onto nothing": Case("rebase -b '' top.qcow2"),
    "rebase keeps snapshots": Case("rebase -b base.qcow2 snapshots.qcow2"),
    "rebase onto itself": Case("rebase -b top.qcow2 top.qcow2", REFUSED, ["is the image itself"]),
    "rebase onto its own overlay": Case("rebase -b leaf.qcow2 top.qcow2", REFUSED, ["stands on it"]),
    "rebase onto a missing base": Case("rebase -b none.qcow2 top.qcow2", REFUSED, ["does not exist"]),
    "rebase onto a circle": Case("rebase -b on-loop.qcow2 top.qcow2", REFUSED, ["never ends"]),
    "rebase onto an orphan": Case("rebase -b orphan.qcow2 top.qcow2", REFUSED, ["gone.qcow2"]),
    "rebase in the wrong format": Case("rebase -b other.qcow2 -F vmdk top.qcow2", REFUSED, ["looks like qcow2"]),
    "rebase of an overlay of a written base": Case("rebase -b other.qcow2 on-written.qcow2", REFUSED, ["--force"]),
    "rebase onto an overlay of a written base": Case("rebase -b on-written.qcow2 top.qcow2", REFUSED, ["--force"]),
    "rebase -u to the same content": Case("rebase -u -b copy-of-base.qcow2 mid.qcow2", said=["only the name"]),
    "rebase -u to another base": Case("rebase -u -b other.qcow2 mid.qcow2", REFUSED, ["something else", "--force"]),
    "rebase -u to a smaller base": Case("rebase -u -b small.qcow2 mid.qcow2", REFUSED, ["something else"]),
    "rebase -u to a missing base": Case("rebase -u -b none.qcow2 -F qcow2 mid.qcow2", REFUSED, ["--force"]),
    "rebase -u in the wrong format": Case(
        "rebase -u -b copy-of-base.qcow2 -F raw mid.qcow2", REFUSED, ["something else"]
    ),
    "rebase -u into a circle by force": Case(
        "rebase -u --force -b leaf.qcow2 -F qcow2 base.qcow2", REFUSED, ["stands on it"]
    ),
    "rebase -u of a snapshot's base": Case("rebase -u -b other.qcow2 snapshots.qcow2", REFUSED, ["something else"]),
    "rebase -u opens a circle only by force": Case(
        "rebase -u -b base.qcow2 on-loop.qcow2", REFUSED, ["cannot be proven", "--force"]
    ),
    "rebase with a data file": Case("rebase -b other.qcow2 data.qcow2", REFUSED, ["another file"]),
    "rebase of a sealed image": Case("rebase -b other.qcow2 sealed.qcow2", REFUSED, ["sealed"]),
    "rebase of a raw image": Case("rebase -b other.qcow2 plain.img", REFUSED, ["raw"]),
    "rebase both ways at once": Case("rebase --absolute --relative -b base.qcow2 top.qcow2", NO_SENSE),
    # flatten
    "flatten": Case("chain flatten top.qcow2"),
    "flatten in the middle": Case("chain flatten mid.qcow2"),
    "flatten with snapshots": Case("chain flatten snapshots.qcow2"),
    "flatten a base": Case("chain flatten base.qcow2", REFUSED, ["nothing already"]),
    "flatten into a new file": Case("chain flatten top.qcow2 --to new.qcow2", reads={"new.qcow2": "top.qcow2"}),
    "flatten over an image of the chain": Case("chain flatten top.qcow2 --to base.qcow2 --force", REFUSED, ["chain"]),
    "flatten over somebody's base": Case("chain flatten top.qcow2 --to other.qcow2 --force", REFUSED, ["on-other"]),
    "flatten over what is there": Case("chain flatten top.qcow2 --to sibling.qcow2", REFUSED, ["exists", "--force"]),
    "flatten on a written base": Case("chain flatten on-written.qcow2", REFUSED, ["--force"]),
    "flatten a data file in place": Case("chain flatten data.qcow2", REFUSED, ["--to"]),
    "flatten an orphan": Case("chain flatten orphan.qcow2", REFUSED, ["gone.qcow2"]),
    # shorten
    "shorten": Case("chain shorten leaf.qcow2"),
    "shorten and delete": Case(
        "chain shorten leaf.qcow2 --delete", reads={"mid.qcow2": None, "top.qcow2": None}, said=["deleted"]
    ),
    "shorten and keep": Case("chain shorten leaf.qcow2 --keep mid.qcow2 --delete", reads={"top.qcow2": None}),
    "shorten what is short": Case("chain shorten mid.qcow2", REFUSED, ["no layer"]),
    "shorten a base": Case("chain shorten base.qcow2", REFUSED, ["stands on nothing"]),
    "shorten onto a stranger": Case("chain shorten leaf.qcow2 --onto other.qcow2", REFUSED, ["does not stand on"]),
    # reset, delete
    "reset": Case("overlay reset sibling.qcow2", reads={"sibling.qcow2": "base.qcow2"}),
    "reset under an overlay": Case("overlay reset top.qcow2", REFUSED, ["leaf.qcow2", "--force"]),
    "reset of a base": Case("overlay reset other.qcow2 --force", REFUSED, ["no backing file"]),
    "reset with snapshots": Case("overlay reset snapshots.qcow2", REFUSED, ["snapshots", "--force"]),
    "delete": Case("overlay delete leaf.qcow2", reads={"leaf.qcow2": None}),
    "delete under an overlay": Case("overlay delete mid.qcow2", REFUSED, ["top.qcow2", "--force"]),
    "delete a base": Case("overlay delete small.qcow2", REFUSED, ["larger.qcow2"]),
    "delete what is no overlay": Case("overlay delete copy-of-base.qcow2", REFUSED, ["not an overlay", "--force"]),
    "delete one of two names": Case("overlay delete second-name.qcow2", REFUSED, ["two-names.qcow2", "--force"]),
    "delete an orphan": Case("overlay delete orphan.qcow2"),
    "delete one of a circle": Case("overlay delete loop-b.qcow2", REFUSED, ["loop-a.qcow2"]),
    # overlay new, resize, snapshot, amend
    "an overlay smaller than its base": Case("overlay new base.qcow2 x.qcow2 --size 512k", REFUSED, ["would hide"]),
    "an overlay over a file": Case("overlay new base.qcow2 other.qcow2", REFUSED, ["exists"]),
    "an overlay in a circle": Case("overlay new loop-a.qcow2 x.qcow2", REFUSED, ["never ends"]),
    "shrinking a base": Case("resize --shrink other.qcow2 512k", REFUSED, ["on-other.qcow2"]),
    "shrinking unasked": Case("resize leaf.qcow2 512k", REFUSED, ["--shrink"]),
    "resizing a sealed image": Case("resize --force sealed.qcow2 2M", REFUSED, ["sealed"]),
    "going back to a snapshot nobody took": Case("snapshot -a never snapshots.qcow2", REFUSED, ["kept"]),
    "a snapshot of a base": Case("snapshot -c new base.qcow2"),
    "a snapshot of the same name": Case("snapshot -c kept snapshots.qcow2", REFUSED, ["--force"]),
    "amending under overlays": Case("amend -o lazy_refcounts=on base.qcow2"),
    "a bitmap under overlays": Case("bitmap --add other.qcow2 b0"),
}


class Said(NamedTuple):
    status: int
    text: str


def imgtool(words: Sequence[str], capsysbinary: pytest.CaptureFixture[bytes]) -> Said:
    with pytest.raises(SystemExit) as done:
        main(words)
    out, err = capsysbinary.readouterr()
    return Said(int(done.value.code or 0), (out + err).decode(errors="replace"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("hazards") / "store"
    store.mkdir()
    build(store)
    return store


def copied(template: Path, store: Path) -> Path:
    """Times stay, since anchors remember them, and hard links."""
    shutil.copytree(template, store)
    (store / "second-name.qcow2").unlink()
    os.link(store / "two-names.qcow2", store / "second-name.qcow2")
    return store


def store_for(case: Case, template: Path, store: Path) -> Path:
    copied(template, store)
    if "data.qcow2" in case.words:
        for name in ("data.qcow2", "data.raw"):
            (store / name).unlink()
        data_image(store)
    return store


def contents(store: Path) -> dict[str, str]:
    readable = (path for path in sorted(store.iterdir()) if path.name not in UNREADABLE)
    return {path.name: digest(path, "raw" if path.suffix == ".img" else None) for path in readable}


@pytest.fixture(scope="module")
def before(template: Path) -> dict[str, str]:
    return contents(template)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_hazard(
    case: Case,
    template: Path,
    before: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    store = store_for(case, template, tmp_path / "store")
    monkeypatch.chdir(store)
    said = imgtool([word.strip("'") for word in case.words.split()], capsysbinary)
    assert said.status == case.status, said.text
    for part in case.said:
        assert part in said.text, said.text
    if case.status != 0:
        assert "imgtool: error: " in said.text
    if case.status == REFUSED:
        assert "hint: " in said.text or not any("--" in part for part in case.said), said.text
    wanted = dict(before)
    for name, source in case.reads.items():
        if source is None:
            del wanted[name]
        else:
            wanted[name] = before[source]
    assert contents(store) == wanted
    if case.status != 0:
        assert {path.name for path in store.iterdir()} == {path.name for path in template.iterdir()}


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.status == 0], ids=lambda case: case.words)
def test_a_dry_run_names_what_would_be_done_and_does_nothing(
    case: Case,
    template: Path,
    before: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    store = copied(template, tmp_path / "store")
    monkeypatch.chdir(store)
    said = imgtool([*(word.strip("'") for word in case.words.split()), "--dry-run"], capsysbinary)
    assert said.status == 0, said.text
    assert any(action in said.text for action in ("replace", "create", "delete", "write")), said.text
    assert "run     " in said.text or "delete" in said.text
    assert {path.name: path.read_bytes() for path in store.iterdir()} == {
        path.name: path.read_bytes() for path in template.iterdir()
    }


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.status == 0], ids=lambda case: case.words)
def test_what_a_run_changes_is_what_its_dry_run_named(
    case: Case,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    store = copied(template, tmp_path / "store")
    monkeypatch.chdir(store)
    words = [word.strip("'") for word in case.words.split()]
    plan = json.loads(imgtool([*words, "--dry-run", "--output", "json"], capsysbinary).text)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    assert imgtool(words, capsysbinary).status == 0
    after = {path.name: path.read_bytes() for path in store.iterdir()}
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    named = [Path(image["path"]).name for image in plan["images"] if image["action"] != "read"]
    assert sorted(named) == sorted(changed)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.status != 0 and "something else" not in case.said],
    ids=lambda case: case.words,
)
def test_what_a_run_refuses_its_dry_run_refuses(
    case: Case,
    template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """All but what is seen only by reading two disks."""
    monkeypatch.chdir(store_for(case, template, tmp_path / "store"))
    said = imgtool([*(word.strip("'") for word in case.words.split()), "--dry-run"], capsysbinary)
    assert said.status == case.status, said.text
    for part in case.said:
        assert part in said.text, said.text


def test_the_old_way_hurts(template: Path, before: dict[str, str], tmp_path: Path) -> None:
    """qemu-img alone, with exit status 0: what the table above is there for."""
    store = copied(template, tmp_path / "store")

    def qemu_img(*words: str) -> None:
        subprocess.run([Programs().find("qemu-img"), *words], cwd=store, check=True, stdout=subprocess.DEVNULL)

    qemu_img("commit", "-f", "qcow2", "mid.qcow2")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "small.qcow2", "-F", "qcow2", "on-other.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", "new.qcow2", "512k")
    after = contents(store)
    assert after["sibling.qcow2"] != before["sibling.qcow2"]
    assert after["on-other.qcow2"] != before["on-other.qcow2"]

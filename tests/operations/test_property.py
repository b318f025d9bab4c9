"""Random stores, random operations, random faults: after each step every image reads what a plain model says.

`IMGTOOL_EXAMPLES=N` runs N random stores instead of a few.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from imgtool.operations.overlay import new_overlay
from imgtool.qemu.programs import Programs
from imgtool.qemu.qemu_img import QemuImg
from tests.faults.disks import read_disk
from tests.faults.harness import KINDS, Kind, Shim
from tests.operations.model import PIECE, Model, Node, Row

EXAMPLES = int(os.environ.get("IMGTOOL_EXAMPLES", "6"))
MOST = 30
SIZE = 8
"""Pieces."""

Fault = tuple[Kind, int] | None

faults = st.one_of(st.none(), st.tuples(st.sampled_from(KINDS), st.integers(1, 60)))
pieces = st.dictionaries(st.integers(0, SIZE - 1), st.integers(0, 9), min_size=1, max_size=4)
choice = st.integers(0, 2**32 - 1)
"""Which of the images there are: see `Stores.pick`."""
trees = st.lists(st.tuples(choice, pieces), min_size=4, max_size=9)


class Stores(RuleBasedStateMachine):
    shim: ClassVar[Shim]

    def __init__(self) -> None:
        super().__init__()
        self.store = Path(tempfile.mkdtemp(dir=self.shim.store("x").parent))
        self.model = Model()
        self.made = 0

    def teardown(self) -> None:
        shutil.rmtree(self.store)

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}-{self.made}.qcow2" if kind != "raw" else f"raw-{self.made}.img"

    def pick(self, number: int, *, leaf: bool = False, overlay: bool = False) -> str:
        """One of the images by chance; nine times of ten a leaf or an overlay, where that is wished."""
        chance = random.Random(number)
        names = sorted(self.model.nodes)
        if chance.random() < 0.9:
            nodes = self.model.nodes
            wished = [name for name in names if not leaf or not self.model.children(name)]
            wished = [name for name in wished if not overlay or nodes[name].parent is not None]
            names = wished or names
        return chance.choice(names)

    def write(self, name: str, written: dict[int, int]) -> None:
        commands = [word for piece, byte in written.items() for word in ("-c", f"write -P {byte} {piece * 64}k 64k")]
        argv = [Programs().find("qemu-io"), "-f", self.model.nodes[name].format, *commands, str(self.store / name)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        self.model.nodes[name].own.update(written)

    def check(self, *models: Model) -> None:
        """Every image there is reads as in one of `models`."""
        found = {
            path.name: _row(path) for path in sorted(self.store.iterdir()) if not path.name.startswith(".imgtool-")
        }
        wanted = [model.contents() for model in models]
        for name in {*found, *(name for one in wanted for name in one)}:
            assert found.get(name) in [one.get(name) for one in wanted], name

    def tidy(self) -> None:
        assert [path.name for path in self.store.iterdir() if path.name.startswith(".")] == []

    def run(
        self, words: Sequence[str], change: Callable[[Model], bool], fault: Fault, *, done: str | None = None
    ) -> None:
        """Runs imgtool and changes the model, or sees it refused; a fault is followed by the same command again."""
        after = self.model.copy()
        if not change(after):
            outcome = self.shim.run(words, self.store)
            assert outcome.status == 1, (words, outcome.stderr)
            assert "imgtool: error: " in outcome.stderr
            assert "failed:" not in outcome.stderr, outcome.stderr
            self.check(self.model)
            self.tidy()
            return
        if fault is not None:
            outcome = self.shim.run(words, self.store, kind=fault[0], at=fault[1])
            self.check(*([after] if outcome.status == 0 else [self.model, after]))
        if fault is None or outcome.status != 0:
            outcome = self.shim.run(words, self.store)
            over = done is not None and fault is not None and done in outcome.stderr
            assert outcome.status == 0 or over, (words, fault, outcome.stderr)
        self.model = after
        self.check(self.model)
        if fault is None or outcome.status == 0:
            self.settle()
        self.tidy()

    def settle(self) -> None:
        """A command that ended well under a fault may have left what the next one takes away."""
        from imgtool.operations.journal import recover

        recover(str(self.store))

    @initialize(written=pieces, raw=st.booleans(), tree=trees)
    def base(self, written: dict[int, int], raw: bool, tree: list[tuple[int, dict[int, int]]]) -> None:
        self.new_base(written, raw)
        for on, own in tree:
            self.new_overlay(on, own)

    @precondition(lambda self: len(self.model.nodes) < MOST)
    @rule(written=pieces, raw=st.booleans())
    def new_base(self, written: dict[int, int], raw: bool) -> None:
        name = self.name("raw" if raw else "base")
        format = "raw" if raw else "qcow2"
        QemuImg().create(self.store / name, SIZE * PIECE, format=format)
        self.model.nodes[name] = Node(SIZE, format=format)
        self.write(name, written)
        self.check(self.model)

    @precondition(lambda self: len(self.model.nodes) < MOST)
    @rule(on=choice, written=pieces)
    def new_overlay(self, on: int, written: dict[int, int]) -> None:
        parent = self.pick(on)
        name = self.name("overlay")
        new_overlay(self.store / parent, self.store / name)
        self.model.nodes[name] = Node(self.model.nodes[parent].size, parent)
        self.write(name, written)
        self.check(self.model)

    @rule(on=choice, written=pieces)
    def new_write(self, on: int, written: dict[int, int]) -> None:
        name = self.pick(on, leaf=True)
        if not self.model.children(name):  # else its overlays would not trust it any more
            self.write(name, written)
            self.check(self.model)

    @rule(on=choice, keep=st.booleans(), preserve=st.booleans(), fault=faults)
    def commit(self, on: int, keep: bool, preserve: bool, fault: Fault) -> None:
        name = self.pick(on, overlay=True)
        words = ["commit", *["-d"] * keep, *["--preserve-siblings"] * preserve, name]
        self.run(words, lambda model: model.commit(name, keep=keep, preserve=preserve), fault)

    @rule(on=choice, to=choice, nothing=st.booleans(), fault=faults)
    def rebase(self, on: int, to: int, nothing: bool, fault: Fault) -> None:
        name, parent = self.pick(on), None if nothing else self.pick(to)
        self.run(["rebase", "-b", parent or "", name], lambda model: model.rebase(name, parent), fault)

    @rule(on=choice, fault=faults)
    def flatten(self, on: int, fault: Fault) -> None:
        name = self.pick(on, overlay=True)
        self.run(["chain", "flatten", name], lambda model: model.flatten(name), fault, done="nothing already")

    @rule(on=choice, delete=st.booleans(), fault=faults)
    def shorten(self, on: int, delete: bool, fault: Fault) -> None:
        name = self.pick(on, overlay=True)
        words = ["chain", "shorten", *["--delete"] * delete, name]
        self.run(words, lambda model: model.shorten(name, delete=delete), fault, done="no layer to merge")

    @rule(on=choice, fault=faults)
    def reset(self, on: int, fault: Fault) -> None:
        name = self.pick(on, leaf=True, overlay=True)
        self.run(["overlay", "reset", name], lambda model: model.reset(name), fault)

    @rule(on=choice, fault=faults)
    def delete(self, on: int, fault: Fault) -> None:
        name = self.pick(on, leaf=True, overlay=True)
        self.run(["overlay", "delete", name], lambda model: model.delete(name), fault, done="does not exist")

    @rule(on=choice, fault=faults)
    def move(self, on: int, fault: Fault) -> None:
        name = self.pick(on)
        to = self.name("raw" if self.model.nodes[name].format == "raw" else "moved")
        words = ["chain", "move", name, to]
        self.run(words, lambda model: model.move(name, to), fault, done="does not exist")

    @rule(on=choice, more=st.integers(0, 4), fault=faults)
    def grow(self, on: int, more: int, fault: Fault) -> None:
        name = self.pick(on, leaf=True)
        size = self.model.nodes[name].size + more
        self.run(["resize", name, str(size * PIECE)], lambda model: model.grow(name, size), fault)

    @rule(on=choice, snapshot=st.sampled_from("ab"), fault=faults)
    def snapshot(self, on: int, snapshot: str, fault: Fault) -> None:
        name = self.pick(on)
        words = ["snapshot", "-c", snapshot, name]
        self.run(words, lambda model: model.snapshot(name, snapshot), fault, done="has a snapshot")

    @rule(on=choice, snapshot=st.sampled_from("ab"), fault=faults)
    def back_to(self, on: int, snapshot: str, fault: Fault) -> None:
        name = self.pick(on, leaf=True)
        self.run(["snapshot", "-a", snapshot, name], lambda model: model.back_to(name, snapshot), fault)

    @rule(on=choice, snapshot=st.sampled_from("ab"), fault=faults)
    def forget(self, on: int, snapshot: str, fault: Fault) -> None:
        name = self.pick(on)
        words = ["snapshot", "-d", snapshot, name]
        self.run(words, lambda model: model.forget(name, snapshot), fault, done="has no snapshot")


def _row(path: Path) -> Row:
    disk = read_disk(path, "raw" if path.suffix == ".img" else "qcow2")
    starts = range(0, len(disk), PIECE)
    assert all(disk[at : at + PIECE].count(disk[at]) == len(disk[at : at + PIECE]) for at in starts), path.name
    return tuple(disk[at] for at in starts)


def test_every_image_always_reads_what_the_model_says() -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="imgtool-property-", dir=memory) as folder, Shim(Path(folder)) as shim:
        Stores.shim = shim
        run_state_machine_as_test(
            Stores,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=20,
                derandomize=EXAMPLES == 6,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_the_native_reader_agrees_with_qemu(tmp_path: Path) -> None:
    base, top, raw = tmp_path / "base.img", tmp_path / "top.qcow2", tmp_path / "top.raw"
    QemuImg().create(base, 5 * PIECE, format="raw")
    new_overlay(base, top, size=9 * PIECE)
    commands = ["-c", "write -P 3 70k 100k", "-c", "write -z 128k 64k", "-c", "write -P 9 500k 76k"]
    for file, format in ((base, "raw"), (top, "qcow2")):
        argv = [Programs().find("qemu-io"), "-f", format, *commands[: 6 if format == "qcow2" else 2], str(file)]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    QemuImg().convert(top, raw, format="qcow2", output_format="raw")
    assert read_disk(top) == raw.read_bytes()

"""The layer store: who holds what, two builds at once, a build killed anywhere, and what prune may take."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from imgtool.build.memory import Memory
from imgtool.build.prune import prune, verify
from imgtool.build.recipe import load_recipe
from imgtool.build.reference import is_reference, resolve
from imgtool.build.store import Store
from imgtool.errors import ConfigError, ImageInUseError, ImageNotFoundError
from imgtool.image.policy import current, in_force
from imgtool.operations.overlay import new_overlay
from tests.build.conftest import Bench

RECIPE = """\
[image]
name = "web"
from = "base.qcow2"

[machine]
memory = "300M"

[[layer]]
name = "one"
run = ["make a"]

[[layer]]
name = "two"
run = ["make b"]

[[layer]]
name = "three"
run = ["make c"]

[output]
path = "web-1.qcow2"
"""

FORK = multiprocessing.get_context("fork")


def run_build(bench: Bench, pause: float) -> None:
    """A build in a process of its own, whose guest takes `pause` seconds for a command."""

    def before(_: str) -> None:
        time.sleep(pause)

    bench.behaviour.before = before
    built = bench.builder().build(load_recipe(str(bench.folder / "web.toml")))
    with open(bench.folder / f"boots-{os.getpid()}", "w") as file:
        file.write(f"{built.boots} {sum(not layer.cached for layer in built.layers)}")


def is_whole(bench: Bench) -> bool:
    found = verify(bench.store, bench.store.layers(), bench.qemu_img)
    return all(one.verdict == "whole" for one in found)


def test_two_builds_of_one_recipe_share_layers_and_do_no_harm(bench: Bench) -> None:
    bench.recipe(RECIPE)
    processes = [FORK.Process(target=run_build, args=(bench, 0.1)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    built = [path.read_text().split() for path in bench.folder.glob("boots-*")]
    assert sum(int(layers) for _, layers in built) == 3, "each layer once, whoever built it"
    assert len(bench.store.layers()) == 3
    assert is_whole(bench)
    top = bench.store.layers()[-1]
    assert bench.qemu_img.compare(top.image, bench.folder / "web-1.qcow2").identical


def test_a_build_killed_anywhere_goes_on_from_its_last_layer(bench: Bench) -> None:
    """Thirty times at random: no sealed layer is ever anything but whole, and the end is always the same image."""
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    right = bench.store.layers()[-1].manifest.content
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for number in range(30):
        prune(bench.store, all_recipes=True)
        (bench.folder / "web-1.qcow2").unlink(missing_ok=True)
        process = FORK.Process(target=run_build, args=(bench, 0.02))
        process.start()
        time.sleep(chance.random() * 1.2)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert is_whole(bench), (seed, number)
        left = len(bench.store.layers())
        built = bench.builder().build(loaded)
        assert sum(layer.cached for layer in built.layers) == left, (seed, number)
        assert built.layers[-1].content == right, (seed, number)
        # A program that was just being started may have held a folder for a moment longer than the build it was for.
        bench.store.clear_stale()
        assert not [name for name in os.listdir(bench.store.root) if name.startswith(".imgtool-")], (seed, number)


def test_a_layer_goes_when_nobody_needs_it(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    bench.builder().build(bench.recipe(RECIPE.replace("make b", "make x")))
    assert len(bench.store.layers()) == 5
    planned = prune(bench.store, dry_run=True)
    assert len(planned.removed) == 2
    assert len(bench.store.layers()) == 5, "a dry run changes nothing"
    done = prune(bench.store)
    assert {kept.name for kept in done.removed} == {"web@two", "web@three"}
    assert done.freed == sum(kept.size for kept in done.removed) > 0
    assert all(kept.needed_by == (f"the recipe {bench.folder / 'web.toml'}",) or kept.needed_by for kept in done.kept)
    assert len(bench.store.layers()) == 3
    assert is_whole(bench)
    again = bench.builder().build(load_recipe(str(bench.folder / "web.toml")))
    assert again.boots == 0


def test_a_layer_that_an_image_stands_on_stays_with_all_beneath_it(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    two = bench.store.layers()[1]
    (bench.folder / "web.toml").unlink()
    (bench.folder / "vms").mkdir()
    with in_force(current().naming(bench.store.root, bench.folder / "base.qcow2")):
        bench.qemu_img.create(
            bench.folder / "vms" / "vm.qcow2", format="qcow2", backing=two.image, backing_format="qcow2"
        )
    done = prune(bench.store, look_in=[str(bench.folder / "vms")])
    assert [kept.name for kept in done.removed] == ["web@three"]
    needed = {kept.name: kept.needed_by for kept in done.kept}
    assert needed["web@two"] == (f"the image {bench.folder / 'vms' / 'vm.qcow2'}",)
    assert needed["web@one"] == ("the layer web@two",)
    (bench.folder / "vms" / "vm.qcow2").unlink()
    assert len(prune(bench.store, look_in=[str(bench.folder / "vms")]).removed) == 2
    assert bench.store.layers() == []


def test_a_layer_that_imgtool_made_an_overlay_of_elsewhere_stays(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nobody names --store for it, and it does not lie where the recipe puts its output."""
    overlay = tmp_path_factory.mktemp("vms") / "vm.qcow2"
    bench.builder().build(bench.recipe(RECIPE))
    with in_force(current().naming(bench.store.root, bench.folder / "base.qcow2")):
        new_overlay(bench.store.layers()[1].image, overlay)
    done = prune(bench.store, all_recipes=True)
    assert [kept.name for kept in done.removed] == ["web@three"]
    assert done.kept[1].needed_by == (f"the image {overlay}",)


def test_prune_by_age_keeps_what_young_layers_stand_on(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    (bench.folder / "web.toml").unlink()
    assert prune(bench.store, older_than=3600).removed == ()
    assert len(prune(bench.store, older_than=0).removed) == 3


def test_prune_to_a_size_takes_what_was_not_used_for_longest(bench: Bench) -> None:
    recipe = bench.recipe(RECIPE)
    bench.builder().build(recipe)
    bench.builder().build(bench.recipe(RECIPE.replace("make b", "make x")))
    bench.builder().build(bench.recipe(RECIPE))  # uses its layers again
    (bench.folder / "web.toml").unlink()
    one, *others = bench.store.layers()
    old = {layer.folder for layer in others[2:]}
    sizes = {layer.folder: layer.manifest.size for layer in bench.store.layers()}
    total = sum(sizes.values())
    assert prune(bench.store, keep_storage=total).removed == ()
    (last,) = prune(bench.store, keep_storage=total - 1, dry_run=True).removed
    assert last.folder == others[3].folder, "of those made with x the one on which none stands"
    done = prune(bench.store, keep_storage=total - sum(sizes[folder] for folder in old))
    assert {kept.folder for kept in done.removed} == old
    assert is_whole(bench)
    assert [kept.name for kept in prune(bench.store, keep_storage=one.manifest.size).removed] == [
        "web@two",
        "web@three",
    ]
    assert [layer.folder for layer in bench.store.layers()] == [one.folder]


def test_prune_to_a_size_takes_failures_first_and_nothing_that_is_needed(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    sizes = [layer.manifest.size for layer in bench.store.layers()]
    work = bench.store.work()
    (Path(work.path) / "overlay.qcow2").write_bytes(bytes(1000))
    kept = bench.store.keep_failed(work, "web")
    part = Path(bench.store.root) / ".imgtool-sha256-0.part"
    part.write_bytes(bytes(10))
    assert prune(bench.store, keep_storage=sum(sizes) + 1000, all_recipes=True).failed == ()
    assert not part.exists(), "nobody fetches it any more"
    done = prune(bench.store, keep_storage=sum(sizes), all_recipes=True)
    assert (done.failed, done.removed, done.freed) == ((kept,), (), 1000)
    assert prune(bench.store, keep_storage=0).removed == ()
    assert [one.name for one in prune(bench.store, keep_storage=sizes[0], all_recipes=True).removed] == [
        "web@two",
        "web@three",
    ]


def test_nothing_is_pruned_while_a_build_uses_the_layers(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    with bench.store.using(), pytest.raises(ImageInUseError, match="a build is using the layers"):
        prune(bench.store, all_recipes=True)
    assert len(bench.store.layers()) == 3


def test_verify_tells_what_is_wrong_with_which_layer(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    one, two, three = bench.store.layers()
    os.chmod(two.image, 0o644)
    assert verdicts(bench) == {"web@one": "whole", "web@two": "changed", "web@three": "whole"}
    os.chmod(two.image, 0o444)
    status = os.stat(two.image)
    with open(two.image, "r+b") as file:  # the size and the time stay: only reading tells
        file.seek(-512, os.SEEK_END)
        file.write(b"\xee" * 512)
    os.utime(two.image, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = verdicts(bench)
    assert found["web@one"] == "whole"
    assert found["web@two"] != "whole"
    assert found["web@three"] != "whole"
    (bench.folder / "base.qcow2").unlink()
    assert set(verdicts(bench).values()) == {"broken-chain"}
    assert one.manifest.parent is None
    assert three.manifest.parent == two.folder


def verdicts(bench: Bench) -> dict[str, str]:
    return {one.name: one.verdict for one in verify(bench.store, bench.store.layers(), bench.qemu_img)}


def test_a_layer_is_named_by_its_recipe(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    reference = f"{loaded.path}@two"
    assert is_reference(reference)
    assert not is_reference("disk.qcow2")
    assert not is_reference(f"{loaded.path}@")
    with pytest.raises(ImageNotFoundError, match="the layer two is not built"):
        resolve(reference, bench.store)
    bench.builder().build(loaded)
    found = resolve(reference, bench.store)
    assert found.image == bench.store.layers()[1].image
    assert found.settings["memory"] == {"size": 300 << 20}
    assert "ready" not in found.settings
    with pytest.raises(ImageNotFoundError, match="has no layer four") as caught:
        resolve(f"{loaded.path}@four", bench.store)
    assert "one, two, three" in (caught.value.hint or "")


def test_a_kept_failure_is_named_the_same_way(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.behaviour.fails = lambda command: 1 if command == "make b" else None
    with pytest.raises(Exception, match="make b"):
        bench.builder(on_error="keep").build(loaded)
    found = resolve(f"{loaded.path}@failed-web-two-1", bench.store)
    assert found.image == bench.store.path("failed-web-two-1", "two.qcow2")
    for name in ("failed-web-two-2", "failed-../../x"):
        with pytest.raises(ImageNotFoundError, match="no kept failure"):
            resolve(f"{loaded.path}@{name}", bench.store)


def test_an_empty_store_has_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"))
    assert store.layers() == []
    assert store.failed() == []
    assert store.find("0" * 64) is None


def test_memory_gives_back_what_a_file_was_and_notices_every_change(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.write_text("one")
    read: list[str] = []

    def compute() -> str:
        read.append(file.read_text())
        return read[-1]

    for _ in range(3):
        assert memory.digest("text", [str(file)], compute) == "one"
    assert read == ["one"]
    status = file.stat()
    file.write_text("two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert memory.digest("text", [str(file)], compute) == "two", "its time was set back"
    (tmp_path / "new").write_text("six")
    os.replace(tmp_path / "new", file)
    assert memory.digest("text", [str(file)], compute) == "six"
    assert memory.digest("other", [str(file)], lambda: "another kind") == "another kind"
    moved = tmp_path / "moved"
    file.rename(moved)
    assert read == ["one", "two", "six"]


def test_memory_never_keeps_what_changed_while_it_was_read(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.write_text("one")

    def compute() -> str:
        found = file.read_text()
        file.write_text("changed meanwhile")
        return found

    assert memory.digest("text", [str(file)], compute) == "one"
    assert memory.digest("text", [str(file)], file.read_text) == "changed meanwhile"


def test_memory_without_a_folder_to_write_works_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    (tmp_path / "cache").write_text("in the way")
    memory = Memory(str(tmp_path / "cache"))
    assert len(memory.sha256(str(tmp_path / "file"))) == 64
    with pytest.raises(ConfigError, match="none cannot be read"):
        memory.sha256(str(tmp_path / "none"))

"""Build layers shared between machines, and recipes that start from a registry. No guest, as in tests.build."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from imgtool.build.base import fetching
from imgtool.build.engine import trusting
from imgtool.build.plan import Choice
from imgtool.build.prune import verify
from imgtool.build.sharing import Shared, pull_layers, push_layers
from imgtool.build.store import Layer, Store
from imgtool.build.watcher import UNSEEN, Task, Watcher
from imgtool.errors import ConfigError, ImageError, ImageFormatError, UsageError
from imgtool.publish.archive import archive, archive_of, file_entry, unpack
from imgtool.publish.buildcache import LayerCache
from imgtool.publish.oci.errors import RegistryError
from imgtool.publish.oci.fetch import fetch
from imgtool.publish.oci.push import push
from tests.build.conftest import Bench
from tests.conftest import Images
from tests.publish.registries import RegistryServer

RECIPE = """\
[image]
name = "web"
from = "base.qcow2"

[[layer]]
name = "one"
run = ["make a"]
fetch = [{ from = "/etc/release", to = "release.txt" }]

[[layer]]
name = "two"
run = ["make b"]

[output]
path = "web-1.qcow2"
"""


@pytest.fixture
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bench, Bench]:
    """Two machines, whose bases hold the same disk in files of their own."""
    monkeypatch.delenv("IMGTOOL_LAYERS", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folders = (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        folder.mkdir()
    first, second = Bench(folders[0]), Bench(folders[1])
    for bench in (first, second):
        bench.behaviour.files["/etc/release"] = b"1.0"
    return first, second


class Saying(Store):
    """A store that believes what a test says of its layers."""

    def chain(self, layer: Layer) -> list[Layer]:
        return [layer]

    def is_whole(self, layer: Layer) -> bool:
        return True


def states(shared: list[Shared]) -> str:
    return " ".join(layer.state for layer in shared)


class Tasks:
    """Remembers what it is told, and how far each came."""

    def __init__(self) -> None:
        self.percents: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def __call__(self, text: str) -> Iterator[Callable[[float], None]]:
        yield self.percents.setdefault(text, []).append


def pulled(bench: Bench, repository: str, recipe: str = RECIPE, task: Task = UNSEEN) -> list[Shared]:
    loaded = bench.recipe(recipe)
    with bench.store.using(), trusting(bench.store, loaded):
        return pull_layers(bench.store, loaded, LayerCache(repository), bench.qemu_img, task)


def test_what_one_machine_built_another_only_fetches(benches: tuple[Bench, Bench], registry: RegistryServer) -> None:
    first, second = benches
    repository = f"{registry.host}/cache/shared"
    first.builder().build(first.recipe(RECIPE))
    assert states(push_layers(first.store, first.store.layers(), LayerCache(repository))) == "pushed pushed"
    assert states(push_layers(first.store, first.store.layers(), LayerCache(repository))) == "present present"
    assert states(pulled(second, repository)) == "pulled pulled"
    assert states(pulled(second, repository)) == "present present"
    built = second.builder().build(second.recipe(RECIPE))
    assert [layer.cached for layer in built.layers] == [True, True]
    assert second.behaviour.boots == 0
    assert (second.folder / "release.txt").read_bytes() == b"1.0"
    assert second.qemu_img.compare(first.folder / "web-1.qcow2", second.folder / "web-1.qcow2").identical
    found = verify(second.store, second.store.layers(), second.qemu_img)
    assert [one.verdict for one in found] == ["whole", "whole"]
    assert not [name for name in os.listdir(second.store.root) if name.startswith(".imgtool-")]


def test_the_layers_before_one_that_changed_are_fetched(
    benches: tuple[Bench, Bench], registry: RegistryServer
) -> None:
    first, second = benches
    repository = f"{registry.host}/cache/changed"
    first.builder().build(first.recipe(RECIPE))
    push_layers(first.store, first.store.layers(), LayerCache(repository))
    changed = RECIPE.replace("make b", "make c")
    assert states(pulled(second, repository, changed)) == "pulled missing"
    built = second.builder().build(second.recipe(changed))
    assert [layer.cached for layer in built.layers] == [True, False]


def test_every_layer_says_how_far_it_is(benches: tuple[Bench, Bench], registry: RegistryServer) -> None:
    first, second = benches
    repository = f"{registry.host}/cache/progress"
    first.builder().build(first.recipe(RECIPE))
    tasks = Tasks()
    for _ in range(2):
        push_layers(first.store, first.store.layers(), LayerCache(repository), tasks)
        pulled(second, repository, task=tasks)
    assert list(tasks.percents) == [
        *("push web@one (1 of 2)", "push web@two (2 of 2)"),
        *("pull web@one (1 of 2)", "verify web@one (1 of 2)", "pull web@two (2 of 2)", "verify web@two (2 of 2)"),
    ]
    for percents in tasks.percents.values():
        assert percents == sorted(percents), "nothing was done twice"
        assert percents[-1] == 100.0


def test_a_layer_that_was_spoilt_is_not_taken(benches: tuple[Bench, Bench], registry: RegistryServer) -> None:
    first, second = benches
    repository = f"{registry.host}/cache/spoilt"
    recipe = RECIPE.replace("make a", "make spoilt")
    first.builder().build(first.recipe(recipe))
    (layer, _) = first.store.layers()
    lied = layer._replace(manifest=msgspec.structs.replace(layer.manifest, content="imgtool1:" + "0" * 64))

    push_layers(Saying(), [lied], LayerCache(repository))
    with pytest.raises(ImageFormatError, match="another disk"):
        pulled(second, repository, recipe)
    assert second.store.layers() == []


def test_a_layer_that_finds_no_room_goes_on_when_there_is(
    benches: tuple[Bench, Bench], registry: RegistryServer
) -> None:
    first, second = benches
    repository = f"{registry.host}/cache/room"
    first.builder().build(first.recipe(RECIPE))
    push_layers(first.store, first.store.layers(), LayerCache(repository))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    try:
        with pytest.raises(ImageError, match="cannot be written: File too large") as caught:
            pulled(second, repository)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.path, caught.value.hint) == (
        second.store.root,
        "make room and run it again: it resumes where it stopped",
    )
    assert second.store.layers() == []
    since = len(registry.log)
    assert states(pulled(second, repository)) == "pulled pulled"
    assert " 206 " in registry.log[since:], "the rest of it"
    assert not [name for name in os.listdir(second.store.root) if name.startswith(".imgtool-")]


class Notes(Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


PARENT = RECIPE.replace("web", "parent").replace("make", "prepare")


def test_a_build_takes_what_others_built_and_gives_what_it_has(
    benches: tuple[Bench, Bench], registry: RegistryServer
) -> None:
    """Of the recipe that it starts from, too."""
    first, second = benches
    cache = LayerCache(f"{registry.host}/cache/at-once")
    for bench in benches:
        bench.recipe(PARENT, "parent.toml")
    recipe = RECIPE.replace("base.qcow2", "parent.toml")
    built = first.builder(cache_from=cache, cache_to=cache).build(first.recipe(recipe))
    assert [(layer.cached, layer.pulled) for layer in built.layers] == [(False, False)] * 2
    notes = Notes()
    built = second.builder(cache_from=cache, cache_to=cache, watcher=notes).build(second.recipe(recipe))
    assert [(layer.cached, layer.pulled) for layer in built.layers] == [(True, True)] * 2
    assert second.behaviour.boots == 0
    assert (second.folder / "release.txt").read_bytes() == b"1.0"
    assert notes.notes[-1] == "0 of 4 layers were not there yet"
    changed = recipe.replace("make b", "make c")
    since = len(registry.log)
    built = second.builder(cache_from=cache).build(second.recipe(changed.replace("web-1", "web-2")))
    assert [(layer.cached, layer.pulled) for layer in built.layers] == [(True, False), (False, False)]
    assert len(registry.requests(since)) < 5, "what is here is not asked for"


def test_a_cache_that_is_spoilt_or_away_stops_no_build(
    benches: tuple[Bench, Bench], registry: RegistryServer
) -> None:
    first, second = benches
    recipe = RECIPE.replace("make a", "make lies")
    first.builder().build(first.recipe(recipe))
    lied = [
        layer._replace(manifest=msgspec.structs.replace(layer.manifest, content="imgtool1:" + "0" * 64))
        for layer in first.store.layers()
    ]
    spoilt = LayerCache(f"{registry.host}/cache/lies")
    push_layers(Saying(), lied[:1], spoilt)
    for cache, problem in ((spoilt, "a guest would read another disk"), (LayerCache("127.0.0.1:1/cache"), "")):
        notes = Notes()
        built = second.builder(cache_from=cache, watcher=notes).build(second.recipe(recipe), Choice(to_layer="one"))
        assert [layer.cached for layer in built.layers] == [False]
        (said,) = [note for note in notes.notes if note.startswith("the layer one is not taken from")]
        assert problem in said
        (layer,) = second.store.layers()
        with second.store.alone():
            second.store.remove(layer)


def test_layers_made_by_hand_stay_here(benches: tuple[Bench, Bench], registry: RegistryServer) -> None:
    first, _ = benches
    first.builder().build(first.recipe(RECIPE))
    layers = [
        layer._replace(manifest=msgspec.structs.replace(layer.manifest, by_hand=True))
        for layer in first.store.layers()
    ]

    assert push_layers(Saying(), layers, LayerCache(f"{registry.host}/cache/by-hand")) == []


def test_a_recipe_starts_from_an_image_in_a_registry(
    benches: tuple[Bench, Bench], registry: RegistryServer, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = benches
    images.base("golden.qcow2", "1M")
    images.run_io(images / "golden.qcow2", "write -P 5 0 64k")
    images.overlay("patched.qcow2", "golden.qcow2")
    reference = f"{registry.host}/golden/patched:1"
    pushed = push(images / "patched.qcow2", reference)
    recipe = RECIPE.replace('from = "base.qcow2"', f'from = "oci:{reference}@{pushed.digest}"')
    with fetching(fetch):
        built = bench.builder().build(bench.recipe(recipe))
        assert [layer.cached for layer in built.layers] == [False, False]
        by_key = RECIPE.replace(
            'from = "base.qcow2"', f'from = "oci:{reference}"\nsha256 = "{pushed.digest.partition(":")[2]}"'
        )
        assert all(layer.cached for layer in bench.builder().build(bench.recipe(by_key)).layers)
        with pytest.raises(ConfigError, match="not pinned"):
            bench.builder().build(bench.recipe(RECIPE.replace("base.qcow2", f"oci:{reference}")))
    with pytest.raises(ConfigError, match="has not been pulled"):
        bench.builder().build(bench.recipe(recipe))


def test_what_was_fetched_once_needs_no_registry(registry: RegistryServer, chain: Images, tmp_path: Path) -> None:
    reference = f"{registry.host}/fetched/web"
    pushed = push(chain / "web.qcow2", f"{reference}:1")
    since = len(registry.log)
    path = fetch(reference, pushed.digest)
    assert not os.stat(path).st_mode & 0o222
    assert os.path.basename(path) == f"web-{pushed.digest.partition(':')[2][:12]}.qcow2"
    assert registry.requests(since)
    since = len(registry.log)
    assert fetch(reference, pushed.digest) == path
    assert not registry.requests(since)
    other = push(chain / "db.qcow2", f"{reference}:2")
    fetch(reference, other.digest)
    names = [name for name in os.listdir(os.path.dirname(path)) if not name.startswith(".")]
    assert len(names) == 3, "one base for both"
    os.unlink(path)
    assert fetch(reference, pushed.digest) == path
    with pytest.raises(UsageError, match="is not a digest"):
        fetch(reference, "latest")


def test_archives_are_the_same_bytes_for_the_same_files(tmp_path: Path) -> None:
    made = []
    for number in range(2):
        folder = tmp_path / str(number)
        (folder / "fetched" / "0").mkdir(parents=True)
        (folder / "fetched" / "0" / "b").write_bytes(b"x" * 600)
        (folder / "fetched" / "0" / "a").write_bytes(b"")
        (folder / "log").write_bytes(b"said")
        (folder / "fetched" / "link").symlink_to("/etc/passwd")
        os.utime(folder / "log", (number, number))
        with contextlib.ExitStack() as stack:
            made.append(b"".join(archive_of(stack, str(folder), ["log", "fetched", "gone"]).pieces()))
    assert made[0] == made[1]
    (tmp_path / "tar").write_bytes(made[0])
    out = tmp_path / "out"
    out.mkdir()
    unpack(str(tmp_path / "tar"), str(out), ["log", "fetched"])
    assert (out / "fetched" / "0" / "b").read_bytes() == b"x" * 600
    assert sorted(os.listdir(out / "fetched")) == ["0"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "fetched/../../x", "other", "fetched//x"])
def test_an_archive_writes_nothing_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(b"".join(archive((file_entry(name, 0), None)).pieces()))
    (tmp_path / "out").mkdir()
    with pytest.raises(RegistryError, match="no place there"):
        unpack(str(tmp_path / "tar"), str(tmp_path / "out"), ["fetched"])
    assert os.listdir(tmp_path / "out") == []


def test_an_archive_holds_files_only(tmp_path: Path) -> None:
    link = file_entry("log", 0)
    link.type, link.linkname = b"2", "/etc/passwd"
    (tmp_path / "tar").write_bytes(b"".join(archive((link, None)).pieces()))
    with pytest.raises(RegistryError, match="is no file"):
        unpack(str(tmp_path / "tar"), str(tmp_path), ["log"])
    (tmp_path / "tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(RegistryError, match="damaged"):
        unpack(str(tmp_path / "tar"), str(tmp_path), ["log"])

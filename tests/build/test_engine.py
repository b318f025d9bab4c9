"""What a build does again and what it leaves alone, how it fails, what it leaves behind. No guest: see conftest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from imgtool.build.built import Built
from imgtool.build.executor import ExecutorError, GuestLost
from imgtool.build.guestwatch import Trouble
from imgtool.build.plan import Choice
from imgtool.build.prune import verify
from imgtool.build.recipe import load_recipe
from imgtool.build.result import ImageManifest
from imgtool.build.session import Failure
from imgtool.build.steps import StepFailed
from imgtool.build.store import Store, decode
from imgtool.build.watcher import Watcher
from imgtool.errors import CommandError, ConfigError, ImageNotFoundError, RefusedError, UsageError
from imgtool.operations.overlay import new_overlay
from tests.build.conftest import Bench
from tests.conftest import Images
from tests.files import state_of

RECIPE = """\
[image]
name = "web"
from = "base.qcow2"

[[layer]]
name = "one"
run = ["make a", "make b"]

[[layer]]
name = "two"
run = ["make c"]

[[layer]]
name = "three"
run = ["make d"]

[output]
path = "web-1.qcow2"
"""


def whole(bench: Bench) -> bool:
    layers = bench.store.layers()
    found = verify(bench.store, layers, bench.qemu_img)
    return bool(layers) and all(one.verdict == "whole" for one in found)


def cached(built: Built) -> str:
    return " ".join("cached" if layer.cached else "built" for layer in built.layers)


def snapshot_of(bench: Bench) -> dict[str, tuple[int, int]]:
    """Inode and time of every layer's image."""
    return {
        layer.manifest.layer: (status.st_ino, status.st_mtime_ns)
        for layer in bench.store.layers()
        for status in [os.stat(layer.image)]
    }


def work_left(bench: Bench) -> list[str]:
    return [name for name in os.listdir(bench.store.root) if name.startswith(".imgtool-")]


def test_all_layers_are_built_in_one_vm(bench: Bench) -> None:
    built = bench.builder().build(bench.recipe(RECIPE))
    assert cached(built) == "built built built"
    assert built.boots == bench.behaviour.boots == 1
    assert bench.behaviour.commands == ["make a", "make b", "make c", "make d"]
    assert bench.behaviour.calls == [*["sync", "freeze", "snapshot", "thaw"] * 2, "power off"]
    assert whole(bench)
    assert work_left(bench) == []


def test_the_result_is_what_the_layers_hold(bench: Bench) -> None:
    built = bench.builder().build(bench.recipe(RECIPE))
    output = bench.folder / "web-1.qcow2"
    assert output.stat().st_mode & 0o777 == 0o444
    info = bench.qemu_img.info(output)
    assert info.backing_filename is None
    top = bench.store.layers()[-1]
    assert bench.qemu_img.compare(top.image, output).identical
    manifest = decode(Path(f"{output}.manifest.json").read_bytes(), ImageManifest)
    assert manifest.sha256 == hashlib.sha256(output.read_bytes()).hexdigest()
    assert manifest.content == top.manifest.content == built.layers[-1].content
    assert [layer.name for layer in manifest.layers] == ["one", "two", "three"]
    assert manifest.lineage == (manifest.base_content, *(layer.content for layer in built.layers))


def test_a_map_that_was_lost_is_made_again(bench: Bench) -> None:
    """The digest of the base is remembered without it, and each build to come would read the whole disk."""
    before = bench.builder().build(bench.recipe(RECIPE))
    (bench.folder / "web-1.qcow2").unlink()
    shutil.rmtree(bench.folder / "cache" / "maps")
    built = bench.builder().build(bench.recipe(RECIPE), Choice(no_cache=True))
    assert [layer.content for layer in built.layers] == [layer.content for layer in before.layers]
    manifest = decode((bench.folder / "web-1.qcow2.manifest.json").read_bytes(), ImageManifest)
    assert all(bench.memory.map_of(content) is not None for content in manifest.lineage)


def test_the_same_layers_make_the_same_bytes(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    first = (bench.folder / "web-1.qcow2").read_bytes()
    bench.builder().build(bench.recipe(RECIPE.replace("web-1", "web-2")))
    assert (bench.folder / "web-2.qcow2").read_bytes() == first


def test_nothing_changed_nothing_done(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    before, output = snapshot_of(bench), state_of(bench.folder / "web-1.qcow2")
    again = bench.builder().build(loaded)
    assert cached(again) == "cached cached cached"
    assert (again.boots, again.output_made, bench.behaviour.boots) == (0, False, 1)
    assert snapshot_of(bench) == before
    assert state_of(bench.folder / "web-1.qcow2") == output


def test_nothing_changed_the_base_is_not_read(bench: Bench) -> None:
    images = Images(bench.folder)
    images.base("base.qcow2", "64M")
    images.run_io(bench.folder / "base.qcow2", "write -q -P 7 0 32M")
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    before = bytes_read()
    built = bench.builder().build(loaded)
    assert cached(built) == "cached cached cached"
    assert bytes_read() - before < 1 << 20


def bytes_read() -> int:
    """By this process and the programs it waited for."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_the_last_layer_changed_the_others_are_left_alone(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    before = snapshot_of(bench)
    built = bench.builder().build(bench.recipe(RECIPE.replace("make d", "make e")))
    assert cached(built) == "cached cached built"
    assert (built.boots, bench.behaviour.boots) == (1, 2)
    after = snapshot_of(bench)
    assert all(after[name] == before[name] for name in ("one", "two"))
    assert bench.behaviour.commands[4:] == ["make e"]
    assert whole(bench)


def test_a_middle_layer_changed_what_follows_is_built_on_it(bench: Bench) -> None:
    first = bench.builder().build(bench.recipe(RECIPE))
    built = bench.builder().build(bench.recipe(RECIPE.replace("make c", "make x")))
    assert cached(built) == "cached built built"
    assert built.layers[2].key != first.layers[2].key
    back = bench.builder().build(bench.recipe(RECIPE))
    assert cached(back) == "cached cached cached"
    assert [layer.key for layer in back.layers] == [layer.key for layer in first.layers]


def test_a_layer_whose_parent_came_out_the_same_is_used_again(bench: Bench) -> None:
    """`make c` leaves the same disk, whatever comment stands beside it."""
    bench.builder().build(bench.recipe(RECIPE))
    bench.behaviour.salt = lambda _: ""
    text = RECIPE.replace('run = ["make c"]', 'run = ["make c"]\nsecrets = ["S"]')
    built = bench.builder(secrets={"S": "x"}).build(bench.recipe(text))
    assert cached(built) == "cached built cached"
    assert bench.behaviour.commands[4:] == ["make c"]
    assert whole(bench)


def test_an_output_that_was_removed_or_changed_is_made_again(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    output = bench.folder / "web-1.qcow2"
    right = output.read_bytes()
    output.unlink()
    assert bench.builder().build(loaded).output_made
    os.chmod(output, 0o644)
    output.write_bytes(right[:-1] + b"x")
    built = bench.builder().build(loaded)
    assert (built.output_made, built.boots) == (True, 0)
    assert output.read_bytes() == right
    assert output.stat().st_mode & 0o777 == 0o444


def test_a_layer_that_was_touched_or_removed_is_built_again_and_why_is_said(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    top = bench.store.layers()[-1]
    said = ("miss", ("it is no longer in the store as it was sealed",))
    os.utime(top.image, (1, 1))
    last = bench.builder().plan(loaded).layers[-1]
    assert (last.state, last.changes) == said
    shutil.rmtree(top.path)
    last = bench.builder().plan(loaded).layers[-1]
    assert (last.state, last.changes) == said


def test_an_output_that_cannot_be_made_is_called_by_its_name(bench: Bench) -> None:
    recipe = RECIPE.replace('from = "base.qcow2"', 'from = "base.qcow2"\nsize = "3T"')
    recipe = recipe.replace('path = "web-1.qcow2"', 'path = "w.vhd"\nformat = "vpc"')
    output = bench.folder / "w.vhd"
    with pytest.raises(CommandError, match="too large") as caught:
        bench.builder().build(bench.recipe(recipe))
    assert caught.value.path == str(output)
    assert f" stood for {output}" in caught.value.command
    assert list(bench.folder.glob(".imgtool-*")) == []
    assert not output.exists()


@pytest.mark.parametrize(
    ("line", "format"),
    [('compression = "none"', "qcow2"), ('compression = "zlib"', "qcow2"), ('format = "raw"', "raw")],
)
def test_another_output_is_made_without_a_boot(bench: Bench, line: str, format: str) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    built = bench.builder().build(bench.recipe(RECIPE + line + "\n"))
    assert (cached(built), built.output_made, built.boots) == ("cached cached cached", True, 0)
    found = bench.qemu_img.info(bench.folder / "web-1.qcow2", format=format)
    assert found.virtual_size == 1 << 20
    assert bench.qemu_img.compare(bench.store.layers()[-1].image, bench.folder / "web-1.qcow2").identical


def test_a_thin_output_stands_on_the_base(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE + "thin = true\n"))
    info = bench.qemu_img.info(bench.folder / "web-1.qcow2")
    assert info.backing_filename == "base.qcow2"
    assert bench.qemu_img.compare(bench.store.layers()[-1].image, bench.folder / "web-1.qcow2").identical


def test_an_output_that_others_stand_on_is_not_replaced(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    bench.qemu_img.create(bench.folder / "child.qcow2", format="qcow2", backing="web-1.qcow2", backing_format="qcow2")
    changed = bench.recipe(RECIPE.replace("make d", "make e"))
    before = (bench.folder / "web-1.qcow2").read_bytes()
    for attempt in (bench.builder().plan, bench.builder().build):
        with pytest.raises(RefusedError, match=r"child\.qcow2"):
            attempt(changed)
    assert bench.behaviour.boots == 1, "refused before any work"
    assert (bench.folder / "web-1.qcow2").read_bytes() == before
    assert bench.builder(force=True).build(changed).output_made


def test_a_failing_step_says_where_and_leaves_what_was_built(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.behaviour.fails = lambda command: 42 if command == "make c" else None
    bench.behaviour.says = lambda command: f"about to {command}\nno luck\x1b[1m\n".encode()
    with pytest.raises(StepFailed) as caught:
        bench.builder().build(loaded)
    error = caught.value
    assert error.line == 11
    assert error.status == 42
    assert f"{loaded.path}:11: the layer two: `make c` ended with exit status 42" in error.message
    assert "| no luck" in error.message
    assert "about to make b" not in error.message
    assert [layer.manifest.layer for layer in bench.store.layers()] == ["one"]
    assert whole(bench)
    assert work_left(bench) == []
    assert not (bench.folder / "web-1.qcow2").exists()
    bench.behaviour.fails = lambda _: None
    built = bench.builder().build(loaded)
    assert cached(built) == "cached built built"
    assert bench.behaviour.commands[3:] == ["make c", "make d"]


@pytest.mark.parametrize(
    ("error", "said", "hint"),
    [
        (GuestLost("web has ended"), "`make c` failed: web has ended", "a step leaves its guest running"),
        (ExecutorError("its end was not seen", hint="look there"), "`make c` failed: its end was not seen", "look"),
    ],
)
def test_a_step_whose_guest_is_lost_says_what_happened_and_what_to_do(
    bench: Bench, error: ExecutorError, said: str, hint: str
) -> None:
    def before(command: str) -> None:
        if command == "make c":
            raise error

    bench.behaviour.before = before
    with pytest.raises(StepFailed) as caught:
        bench.builder().build(bench.recipe(RECIPE))
    assert said in caught.value.message
    assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize("on_error", ["clean", "keep", "shell"])
def test_a_command_of_several_lines_that_fails_is_called_by_its_first(bench: Bench, on_error: str) -> None:
    text = RECIPE.replace('"make c"', '"""\n\nset -x\nmake c\n"""')
    bench.behaviour.fails = lambda command: 1 if command.startswith("set -x") else None
    with pytest.raises(StepFailed, match=r"two: `set -x … \(2 lines\)` ended with exit status 1") as caught:
        bench.builder(on_error=on_error).build(bench.recipe(text))
    assert caught.value.step == "\nset -x\nmake c\n"
    assert ("--on-error shell opens" in str(caught.value.hint)) == (on_error == "clean")


@pytest.mark.parametrize(
    ("trouble", "hint"),
    [
        (Trouble("disk", "there is no space left for what it writes"), "make room in {store} "),
        (Trouble("kernel", "its kernel has stopped: Kernel panic"), "what is sealed is kept; --on-error keep "),
    ],
)
def test_a_guest_that_was_ended_in_a_step_says_why_and_what_to_do(bench: Bench, trouble: Trouble, hint: str) -> None:
    bench.behaviour.fails = lambda command: 1 if command == "make c" else None
    bench.behaviour.trouble = trouble
    with pytest.raises(StepFailed) as caught:
        bench.builder().build(bench.recipe(RECIPE))
    assert caught.value.message.endswith(f"\nweb was ended: {trouble.text}")
    assert str(caught.value.hint).startswith(hint.format(store=bench.store.root))


def test_a_failure_can_be_kept_with_its_log(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE, "my web.toml")
    bench.behaviour.fails = lambda command: 1 if command == "make d" else None
    bench.behaviour.says = lambda command: f"said {command}\n".encode()
    for number in (1, 2):
        with pytest.raises(StepFailed) as caught:
            bench.builder(on_error="keep").build(loaded)
        kept = Path(bench.store.path(f"failed-web-three-{number}"))
        assert f"imgtool boot '{loaded.path}@{kept.name}'" in (caught.value.hint or "")
        assert (kept / "log").read_text() == "==> make d\nsaid make d\n"
        assert bench.qemu_img.check(kept / "three.qcow2").status == "clean"
        assert bench.qemu_img.info(kept / "three.qcow2").backing_filename is not None
    assert bench.store.failed() == [bench.store.path(f"failed-web-three-{number}") for number in (1, 2)]


def test_a_layer_that_somebody_mended_by_hand_is_never_a_hit(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    failures: list[Failure] = []
    bench.behaviour.fails = lambda command: 1 if command == "make c" and not failures else None

    def decide(failure: Failure) -> str:
        failures.append(failure)
        return "retry"

    built = bench.builder(on_error="shell", decide=decide).build(loaded)
    assert [failure.layer for failure in failures] == ["two"]
    assert "let go" in bench.behaviour.calls
    assert cached(built) == "built built built"
    by_hand = {layer.manifest.layer: layer.manifest.by_hand for layer in bench.store.layers()}
    assert by_hand == {"one": False, "two": True, "three": True}
    again = bench.builder().build(loaded)
    assert cached(again) == "cached built built"


def test_who_gives_up_in_the_shell_gets_the_error(bench: Bench) -> None:
    bench.behaviour.fails = lambda command: 1 if command == "make c" else None
    with pytest.raises(StepFailed):
        bench.builder(on_error="shell", decide=lambda _: "give-up").build(bench.recipe(RECIPE))
    assert work_left(bench) == []


def test_max_age_rebuilds_what_is_older(bench: Bench) -> None:
    text = RECIPE.replace('run = ["make c"]', 'run = ["make c"]\nmax-age = "1h"')
    loaded = bench.recipe(text)
    bench.builder().build(loaded)
    assert cached(bench.builder().build(loaded)) == "cached cached cached"
    layer = bench.store.layers()[1]
    manifest = json.loads(Path(layer.path, "manifest.json").read_text())
    manifest["created"] -= 7200
    Path(layer.path, "manifest.json").write_text(json.dumps(manifest))
    plan = bench.builder().plan(loaded)
    assert [one.state for one in plan.layers] == ["hit", "miss", "unknown"]
    assert plan.layers[1].changes == ("older than max-age (1h)",)
    bench.behaviour.salt = lambda _: "what the network says now"
    built = bench.builder().build(loaded)
    assert cached(built) == "cached built built"
    assert built.layers[1].folder == f"{built.layers[1].key}.2", "others may stand on the old one"
    assert whole(bench), "those that stand on the old one too"


def test_layers_are_built_anew_when_asked_for(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    assert cached(bench.builder().build(loaded, Choice(from_layer="two"))) == "cached built built"
    assert cached(bench.builder().build(loaded, Choice(no_cache=True))) == "built built built"
    with pytest.raises(UsageError, match="no layer nothing"):
        bench.builder().build(loaded, Choice(from_layer="nothing"))
    assert whole(bench)


def test_a_layer_that_was_tampered_with_is_built_again(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    two = bench.store.layers()[1]
    os.chmod(two.image, 0o644)
    Images(bench.folder).run_io(Path(two.image), "write -P 1 0 512")
    assert not whole(bench)
    built = bench.builder().build(loaded)
    assert cached(built) == "cached built built"


def test_a_base_that_was_moved_is_found_where_it_is(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    (bench.folder / "bases").mkdir()
    (bench.folder / "base.qcow2").rename(bench.folder / "bases" / "b.qcow2")
    text = RECIPE.replace("base.qcow2", "bases/b.qcow2")
    built = bench.builder().build(bench.recipe(text.replace("make d", "make e")))
    assert cached(built) == "cached cached built"
    top = bench.store.find(built.layers[-1].key)
    assert top is not None
    chain = bench.qemu_img.info_chain(bench.folder / "web-1.qcow2")
    assert len(chain) == 1
    assert bench.qemu_img.compare(top.image, bench.folder / "web-1.qcow2").identical


def test_a_base_that_was_touched_is_still_the_base(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    os.utime(bench.folder / "base.qcow2")
    built = bench.builder().build(bench.recipe(RECIPE.replace("make d", "make e")))
    assert cached(built) == "cached cached built"
    assert whole(bench)


def test_a_base_whose_pin_does_not_fit_is_refused(bench: Bench) -> None:
    digest = hashlib.sha256((bench.folder / "base.qcow2").read_bytes()).hexdigest()
    pinned = RECIPE.replace('from = "base.qcow2"', f'from = "base.qcow2"\nsha256 = "{digest}"')
    assert bench.builder().build(bench.recipe(pinned)).boots == 1
    wrong = pinned.replace(digest, digest[::-1])
    with pytest.raises(ConfigError, match=r"web\.toml:4: .* is not the file that sha256 pins") as caught:
        bench.builder().build(bench.recipe(wrong))
    assert caught.value.hint == f"its sha256 is {digest}"


def test_a_missing_base_is_said_with_its_line(bench: Bench) -> None:
    with pytest.raises(ImageNotFoundError, match=r"web\.toml:3: .*nothing\.qcow2") as caught:
        bench.builder().build(bench.recipe(RECIPE.replace("base.qcow2", "nothing.qcow2")))
    assert str(caught.value.hint).startswith("`from` is an image's file")


def test_a_cd_is_no_base(bench: Bench) -> None:
    cd = bytearray(1 << 20)
    cd[0x8000:0x8006] = b"\1CD001"
    (bench.folder / "base.iso").write_bytes(cd)
    with pytest.raises(ConfigError, match=r"web\.toml:3: .*base\.iso is a CD-ROM") as caught:
        bench.builder().plan(bench.recipe(RECIPE.replace("base.qcow2", "base.iso")))
    assert "`imgtool boot new.qcow2 --cdrom FILE --boot d`" in str(caught.value.hint)


def test_a_disk_is_made_larger_and_never_smaller(bench: Bench) -> None:
    larger = RECIPE.replace('from = "base.qcow2"', 'from = "base.qcow2"\nsize = "4M"')
    bench.builder().build(bench.recipe(larger))
    assert bench.qemu_img.info(bench.folder / "web-1.qcow2").virtual_size == 4 << 20
    with pytest.raises(ConfigError, match=r"web\.toml:4: the base has 1048576 bytes"):
        bench.builder().build(bench.recipe(larger.replace("4M", "512K")))


def test_an_output_never_replaces_its_own_base(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="would replace the base"):
        bench.builder().build(bench.recipe(RECIPE.replace("web-1.qcow2", "base.qcow2")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('path = "web.toml"', "would replace the recipe"),
        ('path = "setup.sh"', "setup.sh, with which it is made"),
        ('path = "site/web.qcow2"', "a part of .*site, which is copied into it"),
        ('path = "nowhere/web.qcow2"', "there is no folder"),
        ('path = "site"', "is no file that an image could replace"),
        ('path = "web-1.qcow2"\noptions = { cluster_sise = "64k" }', "qcow2 has no option 'cluster_sise'"),
        ('path = "web-1.qcow2"\noptions = { backing_file = "base.qcow2" }', "cannot hold backing_file"),
        (
            'path = "web-1.qcow2"\noptions = { compat = "1.1", cluster_size = "3" }',
            "qcow2 cannot have cluster_size=3: Cluster size must be a power of two",
        ),
        ('path = "w.vpc"\nformat = "vpc"\noptions = { subformat = "x" }', "vpc cannot have subformat=x: "),
        ('path = "web-1.qcow2"\noptions = { compat = "0.10" }', "qcow2 cannot have all that at once: .*compression"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work_also_by_the_plan(
    bench: Bench, line: str, message: str
) -> None:
    (bench.folder / "setup.sh").write_text("#!/bin/sh\n")
    (bench.folder / "site").mkdir()
    inputs = 'run = ["make d"]\nscript = "setup.sh"\ncopy = [{ from = "site", to = "/srv" }]'
    text = RECIPE.replace('run = ["make d"]', inputs).replace('path = "web-1.qcow2"', line)
    loaded = bench.recipe(text)
    for attempt in (bench.builder().plan, bench.builder().build):
        with pytest.raises(ConfigError, match=rf"web\.toml:\d+: .*{message}"):
            attempt(loaded)
    assert bench.behaviour.boots == 0
    assert (bench.folder / "web.toml").read_text() == text


def test_an_output_in_a_folder_that_is_copied_is_left_out_of_it(bench: Bench) -> None:
    """Nothing of it, or the next build would find the folder changed."""
    (bench.folder / "site").mkdir()
    (bench.folder / "site" / "index.html").write_text("hello")
    copies = RECIPE.replace('run = ["make c"]', 'copy = [{ from = "site", to = "/srv", exclude = ["/web.qcow2"] }]')
    text = copies.replace('path = "web-1.qcow2"', 'path = "site/web.qcow2"')
    with pytest.raises(ConfigError, match="would be a part of") as caught:
        bench.builder().build(bench.recipe(text))
    assert caught.value.hint == 'put it elsewhere, or leave it out: exclude = ["/web.qcow2*"]'
    loaded = bench.recipe(text.replace('"/web.qcow2"', '"/web.qcow2*"'))
    assert cached(bench.builder().build(loaded)) == "built built built"
    again = bench.builder().build(loaded)
    assert (cached(again), again.output_made) == ("cached cached cached", False)


OUTPUTS = """\
[[check]]
run = ["it works"]

[[output]]
path = "web-1.qcow2"

[[output]]
path = "web-1.raw"
format = "raw"
"""


def test_one_build_makes_the_image_in_several_formats(bench: Bench) -> None:
    text = RECIPE.replace('[output]\npath = "web-1.qcow2"\n', OUTPUTS)
    built = bench.builder().build(bench.recipe(text))
    qcow2, raw = (bench.folder / "web-1.qcow2", bench.folder / "web-1.raw")
    assert [(output.path, output.format, output.made) for output in built.outputs] == [
        (str(qcow2), "qcow2", True),
        (str(raw), "raw", True),
    ]
    assert (built.output, built.manifest, built.boots) == (str(qcow2), f"{qcow2}.manifest.json", 2)
    assert bench.behaviour.commands.count("it works") == 1, "both hold the same disk"
    assert bench.qemu_img.compare(qcow2, raw).identical
    manifest = decode(Path(f"{raw}.manifest.json").read_bytes(), ImageManifest)
    assert (manifest.file, manifest.format, manifest.size) == ("web-1.raw", "raw", 1 << 20)
    again = bench.builder().build(bench.recipe(text))
    assert [output.made for output in again.outputs] == [False, False]
    before = state_of(qcow2)
    raw.unlink()
    assert bench.builder().plan(bench.recipe(text)).output == "make"
    again = bench.builder().build(bench.recipe(text))
    assert ([output.made for output in again.outputs], again.boots) == ([False, True], 0)
    assert state_of(qcow2) == before


def test_a_value_that_an_option_cannot_have_is_said_with_its_line_and_what_it_can_be(bench: Bench) -> None:
    options = 'path = "web-1.qcow2"\n[output.options]\nrefcount_bits = "16"\nlazy_refcounts = "maybe"'
    text = RECIPE.replace('path = "web-1.qcow2"', options)
    line = 1 + text[: text.index("lazy")].count("\n")
    with pytest.raises(ConfigError, match=rf"web\.toml:{line}: qcow2 cannot have lazy_refcounts=maybe") as caught:
        bench.builder().build(bench.recipe(text))
    assert str(caught.value.hint).startswith("lazy_refcounts=<bool (on/off)>")
    assert str(caught.value).count("qemu-img") == 0
    for options, hint in (
        ('compat = "0.10"', 'compression = "zlib" goes with them'),
        ('preallocation = "metadata"', 'compression = "none" goes with them'),
        ('compat = "0.10"\nrefcount_bits = "32"', "leave one out"),
    ):
        text = RECIPE.replace('path = "web-1.qcow2"', f'path = "web-1.qcow2"\n[output.options]\n{options}')
        with pytest.raises(ConfigError, match="qcow2 cannot have all that at once: ") as caught:
            bench.builder().build(bench.recipe(text))
        assert caught.value.hint == hint
    large = RECIPE.replace('from = "base.qcow2"', 'from = "base.qcow2"\nsize = "16T"')
    large = large.replace('path = "web-1.qcow2"', 'path = "web-1.qcow2"\noptions = { cluster_size = "512" }')
    with pytest.raises(ConfigError, match="qcow2 cannot have cluster_size=512: "):
        bench.builder().build(bench.recipe(large))
    assert bench.behaviour.boots == 0


def test_an_input_that_is_wrong_is_said_with_its_line(bench: Bench) -> None:
    (bench.folder / "folder").mkdir()
    for line, message in (
        ('copy = [{ from = "nothing", to = "/srv" }]', "nothing cannot be copied: No such file"),
        ('script = "nothing.sh"', "nothing.sh cannot be copied: No such file"),
        ('script = "folder"', "the script .*folder is a folder"),
    ):
        loaded = bench.recipe(RECIPE.replace('run = ["make c"]', line))
        for attempt in (bench.builder().plan, bench.builder().build):
            with pytest.raises(ConfigError, match=rf"web\.toml:11: .*{message}"):
                attempt(loaded)
    assert bench.behaviour.boots == 0, "the layer before is not built for nothing"


def test_a_recipe_can_start_from_another_ones_output(bench: Bench) -> None:
    bench.recipe(RECIPE, "web.toml")
    above = '[image]\nname = "app"\nfrom = "web.toml"\n[[layer]]\nname = "app"\nrun = ["make app"]\n'
    loaded = bench.recipe(above + '[output]\npath = "app.qcow2"\n', "app.toml")
    built = bench.builder().build(loaded)
    assert bench.behaviour.commands == ["make a", "make b", "make c", "make d", "make app"]
    assert cached(built) == "built"
    assert cached(bench.builder().build(loaded)) == "cached"
    bench.recipe(RECIPE.replace("make d", "make e"), "web.toml")
    assert cached(bench.builder().build(loaded)) == "built"
    layer = next(layer for layer in bench.store.layers() if layer.folder == built.layers[-1].folder)
    new_overlay(layer.image, bench.folder / "mine.qcow2")
    bench.recipe(RECIPE.replace("make d", "make f"), "web.toml")
    with pytest.raises(RefusedError, match=r"mine\.qcow2 stands on .*web-1\.qcow2"):
        bench.builder().build(loaded)


def test_recipes_in_a_circle_are_refused(bench: Bench) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        bench.recipe(
            f'[image]\nname = "{one}"\nfrom = "{other}.toml"\n[output]\npath = "{one}.qcow2"\n', f"{one}.toml"
        )
    with pytest.raises(ConfigError, match="this recipe's own image"):
        bench.builder().build(load_recipe(str(bench.folder / "a.toml")))


def test_a_secret_that_nobody_gave_is_missed_before_any_work(bench: Bench) -> None:
    text = RECIPE.replace('run = ["make d"]', 'run = ["make d"]\nsecrets = ["TOKEN"]')
    with pytest.raises(ConfigError, match=r"web\.toml:16: the secret TOKEN is not there") as caught:
        bench.builder().build(bench.recipe(text))
    assert "--secret TOKEN=FILE" in (caught.value.hint or "")
    assert bench.behaviour.boots == 0


def test_a_secret_is_nowhere_but_with_its_step(bench: Bench) -> None:
    text = RECIPE.replace('run = ["make c"]', 'run = ["make c"]\nsecrets = ["TOKEN"]')
    secret = "tr0ub4dor&3"
    bench.behaviour.says = lambda command: f"{command} with {secret[:4]}".encode() + secret[4:].encode() + b"\n"
    seen: list[bytes] = []

    class Seen(Watcher):
        def output(self, piece: bytes) -> None:
            seen.append(piece)

    bench.builder(secrets={"TOKEN": secret, "OTHER": "x1y2z3"}, watcher=Seen()).build(bench.recipe(text))
    assert bench.behaviour.secrets == [{}, {}, {"TOKEN": secret}, {}]
    assert secret.encode() not in b"".join(seen)
    for folder, _, names in os.walk(bench.folder):
        for name in names:
            assert secret.encode() not in Path(folder, name).read_bytes(), name
    again = bench.builder(secrets={"TOKEN": "another"}).build(bench.recipe(text))
    assert cached(again) == "cached cached cached", "a secret's value is not part of the key"


def test_what_was_fetched_comes_with_the_layer_also_from_the_cache(bench: Bench) -> None:
    bench.behaviour.files["/root/report"] = b"all well\n"
    text = RECIPE.replace(
        'run = ["make c"]', 'run = ["make c"]\nfetch = [{ from = "/root/report", to = "reports/two.txt" }]'
    )
    loaded = bench.recipe(text)
    bench.builder().build(loaded)
    report = bench.folder / "reports" / "two.txt"
    assert report.read_bytes() == b"all well\n"
    report.unlink()
    assert cached(bench.builder().build(loaded)) == "cached cached cached"
    assert report.read_bytes() == b"all well\n"


def test_a_file_that_changes_while_it_is_copied_spoils_the_layer(bench: Bench) -> None:
    (bench.folder / "motd").write_text("welcome\n")
    text = RECIPE.replace('run = ["make c"]', 'copy = [{ from = "motd", to = "/etc/motd" }]\nrun = ["make c"]')

    def before(command: str) -> None:
        if command == "make c":
            (bench.folder / "motd").write_text("changed\n")

    bench.behaviour.before = before
    with pytest.raises(ConfigError, match="changed while it was built"):
        bench.builder().build(bench.recipe(text))
    assert [layer.manifest.layer for layer in bench.store.layers()] == ["one"]


def test_steps_are_done_in_their_order(bench: Bench) -> None:
    (bench.folder / "tree" / "sub").mkdir(parents=True)
    (bench.folder / "tree" / "sub" / "file").write_text("x")
    (bench.folder / "one.conf").write_text("y")
    (bench.folder / "setup.py").write_text("#!/usr/bin/env python3\nprint(1)\n")
    layer = """
[[layer]]
name = "all"
wait = ["is it there"]
reboot = true
script = "setup.py"
run = ["first"]
copy = [
  { from = "tree", to = "/srv" },
  { from = "one.conf", to = "/etc/", owner = "www:www", mode = "0600" },
]
seal = ["trim", "machine-id"]
env = { A = "b" }
"""
    bench.behaviour.fails = lambda command: None
    loaded = bench.recipe('[image]\nname = "x"\nfrom = "base.qcow2"\n' + layer)
    bench.builder().build(loaded)
    calls = bench.behaviour.calls
    assert calls[0].startswith("put /run/copy-")
    assert calls[1:] == ["put /etc/one.conf 0600 www:www", "reboot", "power off"]
    shown = [command.splitlines()[0] for command in bench.behaviour.commands]
    assert shown[0].startswith("trap")
    assert shown[1:4] == ["first", "#!/usr/bin/env python3", "is it there"]
    assert "machine-id" in bench.behaviour.commands[4]
    assert "fstrim" in bench.behaviour.commands[5]
    assert bench.behaviour.env[1] == {"A": "b"}


def test_a_wait_is_tried_until_it_succeeds_or_too_late(bench: Bench) -> None:
    text = '[image]\nname = "x"\nfrom = "base.qcow2"\n[[layer]]\nname = "l"\nwait = ["ready?"]\ntimeout = "2s"\n'
    tries: list[str] = []

    def fails(command: str) -> int | None:
        tries.append(command)
        return 1 if len(tries) < 2 else None

    bench.behaviour.fails = fails
    bench.builder().build(bench.recipe(text))
    assert len(tries) == 2
    bench.behaviour.fails = lambda _: 1
    with pytest.raises(StepFailed, match=r"web\.toml:6: the layer l: `wait for ready\?` did not succeed within 2 s"):
        bench.builder().build(bench.recipe(text), Choice(no_cache=True))


def test_a_check_that_fails_keeps_the_image_back(bench: Bench) -> None:
    text = RECIPE.replace("[output]", '[[check]]\nrun = ["look at it"]\n\n[output]')
    bench.behaviour.fails = lambda command: 3 if command == "look at it" else None
    with pytest.raises(StepFailed, match=r"web\.toml:18: a check: `look at it` ended with exit status 3") as caught:
        bench.builder().build(bench.recipe(text))
    place = bench.folder / "web.toml@three"
    assert caught.value.hint == f"`imgtool boot {place}` boots the same disk, to look into"
    assert sorted(os.listdir(bench.folder)) == ["base.qcow2", "cache", "layers", "web.toml"]
    assert [one.throwaway for one in bench.behaviour.starts] == [False, True]
    bench.behaviour.fails = lambda _: None
    built = bench.builder().build(bench.recipe(text))
    assert (cached(built), built.boots, built.output_made) == ("cached cached cached", 1, True)


def test_work_of_a_build_that_was_killed_is_cleared(bench: Bench) -> None:
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    stale = Path(bench.store.path(".imgtool-work-0123456789ab"))
    stale.mkdir()
    (stale / "one.qcow2").write_bytes(b"half")
    held = Store(bench.store.root).work()
    bench.builder().build(loaded)
    assert not stale.exists()
    assert Path(held.path).exists(), "another build is at work there"
    bench.store.drop(held)


def test_a_layer_is_what_its_files_say_wherever_the_store_is(bench: Bench) -> None:
    """A store that was moved is as good as before: nothing in it names the folder it lies in."""
    loaded = bench.recipe(RECIPE)
    bench.builder().build(loaded)
    shutil.move(bench.store.root, bench.folder / "moved")
    bench.store = Store(str(bench.folder / "moved"))
    built = bench.builder().build(bench.recipe(RECIPE.replace("make d", "make e")))
    assert cached(built) == "cached cached built"
    assert whole(bench)


def test_a_recipe_without_layers_is_a_conversion(bench: Bench) -> None:
    text = '[image]\nname = "x"\nfrom = "base.qcow2"\n[output]\npath = "x.raw"\nformat = "raw"\n'
    built = bench.builder().build(bench.recipe(text))
    assert (built.boots, built.output_made) == (0, True)
    assert (bench.folder / "x.raw").stat().st_size == 1 << 20


@pytest.mark.parametrize("thin", [False, True])
def test_a_recipe_without_layers_makes_the_disk_larger_and_knows_it_again(bench: Bench, thin: bool) -> None:
    Images(bench.folder).run_io(bench.folder / "base.qcow2", "write -q -P 7 0 512k")
    text = '[image]\nname = "x"\nfrom = "base.qcow2"\nsize = "2M"\n[output]\npath = "x.qcow2"\n'
    text += "thin = true\n" if thin else ""
    built = [bench.builder().build(bench.recipe(text)).output_made for _ in range(2)]
    found = bench.qemu_img.info(bench.folder / "x.qcow2")
    assert (found.virtual_size, found.backing_filename) == (2 << 20, "base.qcow2" if thin else None)
    assert bench.qemu_img.compare(bench.folder / "base.qcow2", bench.folder / "x.qcow2").identical
    larger = bench.builder().build(bench.recipe(text.replace("2M", "3M")))
    assert [*built, larger.output_made] == [True, False, True]
    assert bench.qemu_img.info(bench.folder / "x.qcow2").virtual_size == 3 << 20


def test_a_thin_output_of_no_layers_holds_nothing_of_its_own(bench: Bench) -> None:
    Images(bench.folder).run_io(bench.folder / "base.qcow2", "write -q -P 7 0 1M")
    text = '[image]\nname = "x"\nfrom = "base.qcow2"\n[output]\npath = "x.qcow2"\nthin = true\n'
    bench.builder().build(bench.recipe(text))
    parts = bench.qemu_img.map(bench.folder / "x.qcow2")
    assert {part.depth for part in parts} == {1}


def test_the_plan_tells_how_long_it_took_last_time(bench: Bench) -> None:
    bench.builder().build(bench.recipe(RECIPE))
    plan = bench.builder().plan(bench.recipe(RECIPE.replace("make c", "make x")))
    assert (plan.boots, plan.output) == (1, "make")
    assert [layer.state for layer in plan.layers] == ["hit", "miss", "unknown"]
    for layer in plan.layers:
        assert layer.seconds is not None
        assert layer.size is not None
        assert layer.size > 0
    before = time.time()
    assert all(layer.manifest.created < before for layer in bench.store.layers())

"""Arguments of recipes: where their values go, what they cannot be, and which layers they concern."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgtool.build.plan import Choice
from imgtool.build.prune import needs, prune
from imgtool.build.recipe import Loaded, load_recipe, parse_recipe
from imgtool.build.reference import resolve
from imgtool.errors import ConfigError, UsageError
from tests.build.conftest import Bench

RECIPE = """\
[args]
VERSION = "1.4"
SUITE = { default = "bookworm", values = ["bookworm", "trixie"] }
SIZE = 2
QUIET = true

[image]
name = "web-${SUITE}"
from = "base.qcow2"
size = "${SIZE}M"
labels = { "org.opencontainers.image.version" = "${VERSION}" }

[machine]
append = "quiet=${QUIET} $${VERSION} $VERSION"

[[layer]]
name = "packages"
run = ["install from $SUITE ${SUITE}"]
args = ["SUITE"]
env = { MIRROR = "http://mirror/${SUITE}", run = "${QUIET}" }

[[layer]]
name = "site"
run = ["fetch $VERSION"]
args = ["VERSION"]

[output]
path = "web-${SUITE}.qcow2"
"""


CHILD = """\
[image]
name = "app"
from = "web.toml"
[[layer]]
name = "app"
run = ["true"]
[output]
path = "app.qcow2"
"""


def test_values_go_wherever_no_shell_reads() -> None:
    recipe = parse_recipe(RECIPE)
    assert (recipe.image.name, recipe.image.size, recipe.outputs[0].path) == (
        "web-bookworm",
        2 << 20,
        "web-bookworm.qcow2",
    )
    assert recipe.image.labels == {"org.opencontainers.image.version": "1.4"}
    assert recipe.machine.append == "quiet=true ${VERSION} $VERSION"
    packages, site = recipe.layers
    assert packages.run == ("install from $SUITE ${SUITE}",)
    assert packages.env == {"SUITE": "bookworm", "MIRROR": "http://mirror/bookworm", "run": "true"}
    assert site.env == {"VERSION": "1.4"}


@pytest.mark.parametrize(
    ("right", "wrong", "line", "message", "hint"),
    [
        ('"1.4"', "{}", 2, "the argument VERSION is not given", "--arg VERSION=VALUE gives it"),
        ('"1.4"', '{ help = "what to fetch" }', 2, "VERSION is not given: what to fetch", "--arg"),
        ('"1.4"', "1.4", 2, "the argument VERSION is no text", 'write VERSION = "…"'),
        ('"1.4"', '{ defaults = "1" }', 2, "unknown key 'defaults'", "did you mean default?"),
        ("VERSION =", "VER-SION =", 2, "'VER-SION' cannot be the name of an argument", "letters"),
        ('default = "bookworm"', 'default = "sid"', 3, "SUITE cannot be 'sid'", "it is one of: bookworm, trixie"),
        (
            "${SIZE}",
            "${SIZES}",
            10,
            "there is no argument 'SIZES'",
            "[args] has: VERSION, SUITE, SIZE, QUIET; $${…} is",
        ),
        ("${SIZE}", "${}", 10, "there is no argument ''", "[args] has"),
        ("${SIZE}M", "${SUITE}", 10, "'bookworm' is not a size", None),
        ('args = ["VERSION"]', 'args = ["VERSIONS"]', 25, "there is no argument 'VERSIONS'", "[args] has"),
        (
            'args = ["VERSION"]',
            'args = ["VERSION"]\nenv = { VERSION = "1" }',
            25,
            "VERSION is in env too",
            "one place",
        ),
        (
            'args = ["VERSION"]',
            'args = ["VERSION"]\nsecrets = ["VERSION"]',
            26,
            "in args too, which is written",
            "one place",
        ),
        ("[args]", "[[args]]", 1, "args", "write [args]"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    right: str, wrong: str, line: int, message: str, hint: str | None
) -> None:
    assert right in RECIPE
    with pytest.raises(ConfigError) as caught:
        parse_recipe(RECIPE.replace(right, wrong), "web.toml")
    assert caught.value.message.startswith(f"web.toml:{line}: "), caught.value.message
    assert message in caught.value.message
    if hint is not None:
        assert hint in (caught.value.hint or "")


def load(bench: Bench, text: str = RECIPE, **given: str) -> Loaded:
    (bench.folder / "web.toml").write_text(text)
    return load_recipe(str(bench.folder / "web.toml"), given)


def states(bench: Bench, loaded: Loaded) -> list[str]:
    return [layer.state for layer in bench.builder().plan(loaded).layers]


def test_a_layer_depends_on_the_arguments_that_it_uses(bench: Bench) -> None:
    built = bench.builder().build(load(bench))
    assert bench.behaviour.env == [
        {"SUITE": "bookworm", "MIRROR": "http://mirror/bookworm", "run": "true"},
        {"VERSION": "1.4"},
    ]
    assert built.manifest is not None
    manifest = json.loads(Path(built.manifest).read_text())
    assert manifest["arguments"] == {"VERSION": "1.4", "SUITE": "bookworm", "SIZE": "2", "QUIET": "true"}
    assert manifest["labels"] == {"org.opencontainers.image.version": "1.4"}
    assert states(bench, load(bench)) == ["hit", "hit"]
    assert states(bench, load(bench, VERSION="1.5")) == ["hit", "miss"]
    assert states(bench, load(bench, SUITE="trixie")) == ["miss", "miss"]


def test_variants_of_one_recipe_keep_their_layers_while_their_images_are_there(bench: Bench) -> None:
    for suite in ("bookworm", "trixie"):
        assert bench.builder().build(load(bench, SUITE=suite)).output_made
    for suite in ("bookworm", "trixie"):
        assert not bench.builder().build(load(bench, SUITE=suite)).output_made
    assert all(kept.needed_by for kept in needs(bench.store))
    (bench.folder / "web-trixie.qcow2").unlink()
    assert prune(bench.store).removed == ()  # it was the last that was built
    bench.builder().build(load(bench))
    assert {kept.name for kept in prune(bench.store).removed} == {"web-trixie@packages", "web-trixie@site"}
    assert states(bench, load(bench)) == ["hit", "hit"]


def test_another_value_for_the_same_image_makes_it_again(bench: Bench) -> None:
    bench.builder().build(load(bench))
    built = bench.builder().build(load(bench, VERSION="1.5"))
    assert ([layer.cached for layer in built.layers], built.output_made) == ([True, False], True)
    prune(bench.store)
    assert states(bench, load(bench)) == ["hit", "miss"]


def test_a_layer_is_found_by_the_arguments_of_the_last_build(bench: Bench) -> None:
    text = RECIPE.replace('VERSION = "1.4"', "VERSION = {}")
    bench.builder().build(load(bench, text, VERSION="7", SUITE="trixie"))
    bench.builder().build(load(bench, text, VERSION="7"))
    bench.builder().build(load(bench, text, VERSION="7", SUITE="trixie"))
    found = resolve(f"{bench.folder / 'web.toml'}@packages", bench.store)
    made = {kept.name: kept.path for kept in needs(bench.store)}
    assert Path(found.image).parent == Path(made["web-trixie@packages"])


def test_arguments_reach_the_recipe_that_another_starts_from(bench: Bench) -> None:
    load(bench)
    (bench.folder / "app.toml").write_text(CHILD)
    bench.builder().build(load_recipe(str(bench.folder / "app.toml"), {"SUITE": "trixie"}))
    assert (bench.folder / "web-trixie.qcow2").exists()
    assert bench.behaviour.env[0]["SUITE"] == "trixie"
    for attempt in (bench.builder().plan, bench.builder().build):
        with pytest.raises(UsageError, match="has no argument 'SUITES'") as caught:
            attempt(load_recipe(str(bench.folder / "app.toml"), {"SUITES": "trixie"}))
        assert caught.value.hint == "it has: VERSION, SUITE, SIZE, QUIET"


def test_a_build_goes_as_far_as_a_layer(bench: Bench) -> None:
    loaded = load(bench)
    choice = Choice(to_layer="packages")
    assert [(layer.name, layer.state) for layer in bench.builder().plan(loaded, choice).layers] == [
        ("packages", "miss")
    ]
    built = bench.builder().build(loaded, choice)
    assert [layer.name for layer in built.layers] == ["packages"]
    assert (built.output, built.outputs) == (None, ())
    assert bench.behaviour.calls == ["power off"]
    assert not (bench.folder / "web-bookworm.qcow2").exists()
    built = bench.builder().build(loaded)
    assert ([layer.cached for layer in built.layers], built.output_made) == ([True, False], True)
    with pytest.raises(UsageError, match="no layer sites"):
        bench.builder().build(loaded, Choice(to_layer="sites"))

"""`imgtool build` and `imgtool layers` as their users run them; the VMs are left out (see tests/build)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from imgtool.build.recipe import load_recipe
from imgtool.build.session import Failure
from imgtool.build.steps import StepFailed
from imgtool.cli.build import _console
from imgtool.cli.context import Context
from imgtool.cli.error_document import error_document
from tests.build.conftest import Bench
from tests.cli.conftest import Imgtool
from tests.publish.registries import RegistryServer

RECIPE = """\
[image]
name = "web"
from = "base.qcow2"

[[layer]]
name = "one"
run = ["make a"]
env = { A = '"\\' }

[[layer]]
name = "two"
run = ["make b"]

[output]
path = "web-1.qcow2"
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A recipe that was built, without a guest."""
    folder = tmp_path / "bench"
    folder.mkdir()
    made = Bench(folder)
    made.builder().build(made.recipe(RECIPE))
    return made


def test_an_unchanged_recipe_is_answered_at_once(bench: Bench, imgtool: Imgtool) -> None:
    done = imgtool("build", "web.toml", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert done.status == 0, done.stderr
    assert "[1/2] one" in done.stderr
    assert "cached" in done.stderr
    assert f"{bench.folder}/web-1.qcow2: up to date" in done.stdout
    answer = imgtool("build", "web.toml", "--output", "json", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert answer.stderr == ""
    document = answer.document
    assert [layer["cached"] for layer in document["layers"]] == [True, True]
    assert (document["boots"], document["output-made"]) == (0, False)
    assert document["manifest"] == f"{bench.folder}/web-1.qcow2.manifest.json"


def test_what_an_unchanged_build_does_not_need_is_not_loaded(bench: Bench, imgtool: Imgtool) -> None:
    done = imgtool(
        "build", "web.toml", cwd=bench.folder, PYTHONPROFILEIMPORTTIME="1", IMGTOOL_LAYERS=bench.store.root
    )
    imported = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
    }
    assert "imgtool.build.engine" in imported
    heavy = {"asyncio", "qemu.qmp", "tqdm", "pycdlib", "imgtool.machine.launch", "imgtool.build.result", "oras"}
    assert imported & heavy == set()


def test_the_plan_says_what_changed(bench: Bench, imgtool: Imgtool) -> None:
    bench.recipe(RECIPE.replace("make b", "make c"))
    done = imgtool("build", "web.toml", "--explain", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    lines = done.stdout.splitlines()
    assert lines[0] == f"base    {bench.folder}/base.qcow2"
    assert lines[1].startswith("cached  one")
    assert lines[2].startswith("build   two")
    assert lines[3].strip() == 'step.run: ["make b"] → ["make c"]'
    assert lines[4] == "output  to be made"
    plan = imgtool(
        "build", "web.toml", "--plan", "--output", "json", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root
    ).document
    assert [layer["state"] for layer in plan["layers"]] == ["hit", "miss"]
    assert plan["boots"] == 1
    dry = imgtool(
        "build", "web.toml", "--dry-run", "--output", "json", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root
    )
    assert dry.document == plan


@pytest.mark.parametrize(
    ("word", "hint"), [("--build-arg", "--arg NAME=VALUE"), ("--target", "--to-layer NAME"), ("-t", "imgtool push")]
)
def test_words_of_other_programs_lead_to_our_own(imgtool: Imgtool, word: str, hint: str) -> None:
    done = imgtool("build", "web.toml", word, "x")
    assert (done.status, hint in done.stderr) == (2, True), done.stderr


WITH_ARGUMENTS = """\
[args]
TOOL = {}

[image]
name = "web"
from = "base.qcow2"

[[layer]]
name = "one"
run = ["make $TOOL"]
args = ["TOOL"]
"""


def test_arguments_are_given_on_the_command_line(bench: Bench, imgtool: Imgtool) -> None:
    (bench.folder / "args.toml").write_text(WITH_ARGUMENTS)
    bench.builder().build(load_recipe(str(bench.folder / "args.toml"), {"TOOL": "a"}))

    def explain(*words: str, **env: str) -> Any:
        return imgtool(
            "build", "args.toml", "--explain", *words, cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root, **env
        )

    assert "step.env.TOOL: a → b=c" in explain("--arg", "TOOL=b=c").stdout
    assert "step.env.TOOL: a → of env" in explain("--arg", "TOOL", TOOL="of env").stdout
    for words, said in (
        ((), "args.toml:2: the argument TOOL is not given"),
        (("--arg", "TOOL"), "TOOL is not set"),
        (("--arg", "TOOL=x", "--arg", "TOLL=x"), "args.toml has no argument 'TOLL'"),
    ):
        done = explain(*words)
        assert (done.status, said in done.stderr) == (2, True), done.stderr


def test_events_come_as_json_lines(bench: Bench, imgtool: Imgtool) -> None:
    done = imgtool("build", "web.toml", "--progress", "json", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["layer-cached", "layer-cached"]
    assert [event["name"] for event in events] == ["one", "two"]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("run =", "rum =", "web.toml:7: unknown key 'rum'"),
        ("base.qcow2", "none.qcow2", "web.toml:3: "),
        ('"web"', '"we b"', "web.toml:2: "),
    ],
)
def test_a_wrong_recipe_is_one_error_with_its_line(
    bench: Bench, imgtool: Imgtool, right: str, wrong: str, said: str
) -> None:
    (bench.folder / "web.toml").write_text(RECIPE.replace(right, wrong, 1))
    done = imgtool("build", "web.toml", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert done.status in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    asked = imgtool("build", "web.toml", "--output", "json", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert asked.error["path"].startswith(str(bench.folder))


def test_a_secret_comes_from_a_file_or_the_environment(bench: Bench, imgtool: Imgtool) -> None:
    text = RECIPE.replace('run = ["make b"]', 'run = ["make b"]\nsecrets = ["TOKEN"]')
    (bench.folder / "web.toml").write_text(text)
    missing = imgtool("build", "web.toml", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert missing.status == 2
    assert "web.toml:13: the secret TOKEN is not there" in missing.stderr
    assert "--secret TOKEN=FILE" in missing.stderr
    nofile = imgtool("build", "web.toml", "--secret", "TOKEN=none", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert nofile.status == 2
    assert "the secret TOKEN cannot be read from none" in nofile.stderr
    unset = imgtool("build", "web.toml", "--secret", "OTHER", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert unset.status == 2
    assert "OTHER is not set" in unset.stderr


def test_the_document_of_a_failed_step_has_its_status(bench: Bench) -> None:
    bench.behaviour.fails = lambda command: 42
    with pytest.raises(StepFailed) as caught:
        bench.builder().build(bench.recipe(RECIPE.replace("make b", "make c")))
    details = error_document(caught.value).error
    assert (details.code, details.exit_status, details.command) == ("step-failed", 42, None)


def test_a_secret_without_a_name_is_refused(bench: Bench, imgtool: Imgtool) -> None:
    done = imgtool("build", "web.toml", "--secret", "=token.txt", cwd=bench.folder, IMGTOOL_LAYERS=bench.store.root)
    assert (done.status, done.stdout) == (2, "")
    assert "--secret =token.txt has no name" in done.stderr


@pytest.mark.parametrize(("output", "said"), [("human", "is not a terminal"), ("json", "")])
def test_where_nobody_can_be_asked_a_failure_is_reported_by_its_end_alone(
    capsys: pytest.CaptureFixture[str], output: str, said: str
) -> None:
    context = Context()
    context.output = output
    failure = Failure(StepFailed("no luck", step="x", status=1, line=3, tail=(), path="web.toml"), Mock(), "one")
    assert _console(context)(failure) == "give-up"
    err = capsys.readouterr().err
    assert "no luck" not in err
    assert said in err if said else err == ""


def test_layers_are_listed_with_who_needs_them(bench: Bench, imgtool: Imgtool) -> None:
    done = imgtool("layers", "list", IMGTOOL_LAYERS=bench.store.root)
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["LAYER", "KEY", "SIZE", "MADE", "NEEDED", "BY"]
    assert lines[1].startswith("web@one")
    assert lines[2].endswith(f"the recipe {bench.folder}/web.toml")
    document = imgtool("layers", "list", "--output", "json", IMGTOOL_LAYERS=bench.store.root).document
    assert [layer["name"] for layer in document["layers"]] == ["web@one", "web@two"]
    assert document["failed"] == []


def test_layers_are_drawn_on_their_bases(bench: Bench, imgtool: Imgtool) -> None:
    lines = imgtool("layers", "tree", IMGTOOL_LAYERS=bench.store.root).stdout.splitlines()
    assert lines[0] == f"{bench.folder}/base.qcow2"
    assert lines[1].startswith("└─ web@one")
    assert lines[2].startswith("   └─ web@two")


def test_a_layer_is_shown_by_name_or_key(bench: Bench, imgtool: Imgtool) -> None:
    two = bench.store.layers()[1]
    for name in ("web@two", two.manifest.key, two.manifest.key[:8]):
        shown = imgtool("layers", "show", name, "--output", "json", IMGTOOL_LAYERS=bench.store.root).document
        assert shown["manifest"]["key"] == two.manifest.key
        assert shown["key-document"]["step"]["run"] == ["make b"]
    assert imgtool("layers", "show", "web@two", "--log", IMGTOOL_LAYERS=bench.store.root).stdout == "==> make b\n"
    for_people = imgtool("layers", "show", "web@one", IMGTOOL_LAYERS=bench.store.root).stdout
    assert "by-hand:      no\n" in for_people
    assert r'  env:      {"A": "\"\\"}' in for_people.splitlines()
    assert "None" not in for_people
    wrong = imgtool("layers", "show", "web@six", IMGTOOL_LAYERS=bench.store.root)
    assert wrong.status == 1
    assert "there is no layer web@six" in wrong.stderr


def test_a_layer_that_is_not_whole_is_a_problem_found(bench: Bench, imgtool: Imgtool) -> None:
    assert imgtool("layers", "verify", IMGTOOL_LAYERS=bench.store.root).status == 0
    two = bench.store.layers()[1]
    os.utime(two.image, (1, 1))
    done = imgtool("layers", "verify", "--output", "json", IMGTOOL_LAYERS=bench.store.root)
    assert done.status == 3
    assert [(one["name"], one["verdict"]) for one in done.document] == [("web@one", "whole"), ("web@two", "changed")]
    assert imgtool("layers", "verify", "web@one", IMGTOOL_LAYERS=bench.store.root).status == 0


def test_layers_that_travel_or_are_read_say_how_far_they_are(
    bench: Bench, imgtool: Imgtool, registry: RegistryServer, tmp_path: Path
) -> None:
    repository, recipe = f"{registry.host}/cli/layers", bench.folder / "web.toml"

    def tasks(*words: str | Path, layers: str) -> list[str]:
        done = imgtool("layers", *words, "--layers", layers, "--progress", "json", XDG_STATE_HOME=str(tmp_path))
        assert done.status == 0, done.stderr
        events = [json.loads(line) for line in done.stderr.splitlines()]
        assert {event["event"] for event in events} == {"progress"}
        return list(dict.fromkeys(event["task"] for event in events))

    other = tmp_path / "other"
    other.mkdir()
    assert tasks("push", repository, layers=bench.store.root) == ["push web@one (1 of 2)", "push web@two (2 of 2)"]
    assert tasks("pull", repository, recipe, layers=str(other))[0] == "pull web@one (1 of 2)"
    assert tasks("verify", layers=bench.store.root) == ["verify web@one", "verify web@two"]


def test_layers_that_nobody_needs_are_pruned(bench: Bench, imgtool: Imgtool) -> None:
    (bench.folder / "web.toml").unlink()
    dry = imgtool("layers", "prune", "--dry-run", IMGTOOL_LAYERS=bench.store.root)
    assert "2 layers would go" in dry.stdout
    assert len(bench.store.layers()) == 2
    young = imgtool("layers", "prune", "--older-than", "1d", IMGTOOL_LAYERS=bench.store.root)
    assert "0 layers gone" in young.stdout
    roomy = imgtool("layers", "prune", "--keep-storage", "1G", IMGTOOL_LAYERS=bench.store.root)
    assert "0 layers gone" in roomy.stdout
    done = imgtool("layers", "prune", "--output", "json", IMGTOOL_LAYERS=bench.store.root).document
    assert [layer["name"] for layer in done["removed"]] == ["web@one", "web@two"]
    assert bench.store.layers() == []
    assert imgtool("layers", "list", IMGTOOL_LAYERS=bench.store.root).stdout == "no layers\n"
    wrong = imgtool("layers", "prune", "--older-than", "soon", IMGTOOL_LAYERS=bench.store.root)
    assert wrong.status == 2


@pytest.mark.parametrize("command", ["list", "tree", "verify", "prune --dry-run"])
def test_a_store_that_nobody_built_into_is_empty_and_one_that_was_named_is_there(
    tmp_path: Path, imgtool: Imgtool, command: str
) -> None:
    empty = imgtool("layers", *command.split(), IMGTOOL_LAYERS=str(tmp_path / "unused"))
    assert empty.status == 0, empty.stderr
    assert empty.stdout in ("no layers\n", "0 layers would go, 0 bytes; 0 stay\n")
    wrong = imgtool("layers", *command.split(), "--layers", "misspelt")
    assert wrong.status == 1
    assert "there is no folder" in wrong.stderr
    assert "misspelt" not in os.listdir(tmp_path)


def test_lint_is_a_command_of_its_own(bench: Bench, imgtool: Imgtool) -> None:
    done = imgtool("build", "lint", bench.folder / "web-1.qcow2")
    assert done.status == 1
    assert "has no file system that imgtool knows" in done.stderr
    assert imgtool("build", "lint", "--help").stdout.startswith("Usage: imgtool build lint ")
    assert "build lint IMAGE" in imgtool("build", "--help").stdout


@pytest.mark.parametrize("name", ["recipe", "manifest", "layer", "build", "build-plan", "lint", "layers-prune"])
def test_every_document_has_a_schema(imgtool: Imgtool, name: str) -> None:
    assert "$ref" in imgtool("schema", name).document or "properties" in imgtool("schema", name).document

"""What a hint proposes can be pasted into a shell, whatever the files are called."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from imgtool.image.names import printable
from tests.cli.conftest import Imgtool
from tests.conftest import Images

FOLDER = os.fsdecode(b"it's a\nstore \xff")


@pytest.fixture
def store(images: Images) -> Path:
    """base ← mid ← top, base ← side, in a directory that a shell would take apart."""
    folder = images / FOLDER
    folder.mkdir()
    images.base(f"{FOLDER}/base")
    images.overlay(f"{FOLDER}/mid", "base")
    images.overlay(f"{FOLDER}/top", "mid")
    images.overlay(f"{FOLDER}/side", "base")
    return folder


def proposed(hint: str) -> list[list[str]]:
    """The words of each command of `hint`, as a shell reads them."""
    commands = re.findall(r"`([^`]*)`", hint)
    assert commands
    return [
        [os.fsdecode(word) for word in subprocess.check_output(["bash", "-c", f"printf '%s\\0' {one}"]).split(b"\0")]
        for one in commands
    ]


@pytest.mark.parametrize(
    ("words", "command", "named"),
    [
        pytest.param(["commit", "mid"], "convert", "mid", id="commit"),
        pytest.param(["overlay", "delete", "base"], "chain flatten", "mid", id="delete a base"),
        pytest.param(["overlay", "delete", "mid"], "chain shorten", "top", id="delete a layer"),
        pytest.param(["overlay", "reset", "mid"], "chain flatten", "top", id="reset"),
        pytest.param(["resize", "base", "+1M"], "chain show", "base", id="resize"),
        pytest.param(["rebase", "-b", "", "sealed"], "chmod u+w", "sealed", id="sealed"),
        pytest.param(["convert", "orphan", "new"], "chain show", "orphan", id="missing parent"),
        pytest.param(["convert", "circle", "new"], "rebase", "circle", id="cycle"),
    ],
)
def test_a_command_in_a_hint_names_the_file_to_a_shell(
    imgtool: Imgtool, images: Images, store: Path, words: list[str], command: str, named: str
) -> None:
    if named == "sealed":
        images.overlay(f"{FOLDER}/sealed", "base").chmod(0o444)
    if named in ("orphan", "circle"):
        images.overlay(f"{FOLDER}/{named}", "base")
        images.rebase(f"{FOLDER}/{named}", "gone" if named == "orphan" else "circle")
    done = imgtool(*words, "--output", "json", cwd=store)
    assert done.status == 1
    found = proposed(done.error["hint"])
    assert any(command in " ".join(one) and str(store / named) in one for one in found), found


def test_what_collect_put_away_is_brought_back_by_the_command_it_names(imgtool: Imgtool, store: Path) -> None:
    done = imgtool("chain", "collect", store, "--keep", store / "top")
    assert done.status == 0, done.stderr
    [undo] = proposed(done.stdout)
    assert not (store / "side").exists()
    assert imgtool(*undo[1:-1]).status == 0
    assert (store / "side").exists()


def test_nothing_put_away_is_said(imgtool: Imgtool, store: Path) -> None:
    assert imgtool("chain", "collect", "--list", store).stdout.strip() == "nothing is put away"
    assert imgtool("chain", "collect", "--list", store, "--output", "json").document == []
    refused = imgtool("chain", "collect", "--undo", store, "--output", "json")
    assert refused.status == 1
    assert str(store) in proposed(refused.error["hint"])[0]


def test_convert_does_not_offer_an_option_of_create(imgtool: Imgtool, store: Path) -> None:
    refused = imgtool("convert", "-O", "qcow2", "-B", "gone", "top", "new", "--output", "json", cwd=store)
    assert refused.status == 1
    assert "-u" not in (refused.error["hint"] or "")
    assert "-u" in imgtool("create", "-f", "qcow2", "-b", "gone", "new", "--output", "json", cwd=store).error["hint"]


@pytest.mark.parametrize(
    "words",
    [
        ["overlay", "delete", "side"],
        ["overlay", "reset", "top"],
        ["overlay", "list", "base"],
        ["commit", "top"],
        ["rebase", "-b", "", "top"],
        ["chain", "show", "base"],
        ["chain", "verify", "base"],
        ["chain", "repair", "base"],
        ["chain", "move", "side", "moved"],
        ["chain", "flatten", "top"],
        ["chain", "shorten", "top"],
        ["chain", "collect", ".", "--keep", "top"],
    ],
    ids=" ".join,
)
def test_a_store_that_is_not_there_is_no_empty_store(imgtool: Imgtool, store: Path, words: list[str]) -> None:
    before = sorted(os.listdir(store))
    done = imgtool(*words, "--store", "misspelt", "--output", "json", cwd=store)
    assert done.status == 1
    assert done.error["path"] == str(store / "misspelt")
    assert sorted(os.listdir(store)) == before


def test_a_plan_of_nothing_says_so(imgtool: Imgtool, store: Path) -> None:
    assert imgtool("chain", "repair", "--dry-run", ".", cwd=store).stdout == "nothing to do\n"


@pytest.mark.parametrize("words", [["convert", "top", "new"], ["chain", "flatten", "top", "--to", "new"]])
def test_what_is_made_has_its_format_named_the_same_everywhere(
    imgtool: Imgtool, store: Path, words: list[str]
) -> None:
    assert imgtool(*words, "--target-format", "vdi", cwd=store).status == 0
    assert imgtool("info", "new", "--output", "json", cwd=store).document["format"] == "vdi"


@pytest.mark.parametrize(
    "words",
    [
        ["create", "new/", "1M"],
        ["convert", "top", "new/"],
        ["overlay", "new", "base", "new/"],
        ["chain", "flatten", "top", "--to", "new/"],
        ["chain", "move", "top", "new/"],
    ],
    ids=" ".join,
)
def test_a_name_with_a_slash_at_its_end_is_no_files(imgtool: Imgtool, store: Path, words: list[str]) -> None:
    before = sorted(os.listdir(store))
    done = imgtool(*words, cwd=store)
    assert done.status in (1, 2)
    assert "directory" in done.stderr
    assert sorted(os.listdir(store)) == before


def test_a_directory_is_no_image_to_keep(imgtool: Imgtool, store: Path) -> None:
    """All in it would go, where somebody meant to keep it."""
    (store / "folder").mkdir()
    done = imgtool("chain", "collect", ".", "--keep", "folder", cwd=store)
    assert done.status == 1
    assert "is a directory" in done.stderr
    assert (store / "top").exists()


def test_what_was_put_away_has_an_id_and_what_will_be_has_none(imgtool: Imgtool, store: Path) -> None:
    done = imgtool("chain", "collect", ".", "--keep", "top", "--id", "x", cwd=store)
    assert done.status == 2
    assert (store / "side").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        pytest.param(["resize", "--shrink", "--preallocation=full", "top", "64k"], "top", id="a copy"),
        pytest.param(["convert", "-O", "qcow2", "-o", "cluster_size=3", "top", "new"], "new", id="a new image"),
        pytest.param(["convert", "-O", "vmdk", "-o", "subformat=no", "top", "new"], "new", id="in a directory"),
    ],
)
def test_a_command_that_failed_says_what_its_hidden_files_stood_for(
    imgtool: Imgtool, store: Path, words: list[str], named: str
) -> None:
    done = imgtool(*words, "--output", "json", cwd=store)
    assert done.status == 1
    comment = done.error["command"].partition("  # gone by now: ")[2]
    hidden, _, shown = comment.partition(" stood for ")
    assert (shown, len(comment.splitlines())) == (printable(str(store / named)), 1)
    argv = shlex.split(done.error["command"], comments=True)
    assert hidden in map(printable, argv)
    assert "#" not in argv


def test_what_cannot_be_replaced_is_not_offered_for_replacing(imgtool: Imgtool, store: Path) -> None:
    os.mkfifo(store / "pipe")
    refused = imgtool("create", "-f", "qcow2", "pipe", "1G", "--output", "json", cwd=store)
    assert (refused.status, refused.error["hint"]) == (1, "choose another name")
    (store / "folder").mkdir()
    refused = imgtool("create", "-f", "qcow2", "folder", "1G", "--output", "json", cwd=store)
    assert (refused.status, refused.error["hint"]) == (2, "name the new image in it")


def test_a_json_reference_is_not_told_to_be_a_driver(imgtool: Imgtool, store: Path) -> None:
    refused = imgtool("info", 'json:{"driver": "raw"}', "--output", "json", cwd=store)
    assert refused.status == 1
    assert "file.driver=json" not in refused.error["hint"]
    assert "--image-opts driver=FORMAT" in refused.error["hint"]


def test_a_warning_before_an_error_is_part_of_its_one_document(imgtool: Imgtool, tmp_path: Path) -> None:
    words = ("create", tmp_path / "disk.qcow2")
    failed = imgtool(*words, "--output", "json")
    document = json.loads(failed.stderr)
    assert (failed.status, document["error"]["code"]) == (2, "usage")
    assert [text.partition(": ")[2] for text in document["warnings"]] == [
        "no format is given; -f qcow2 makes what it says"
    ]
    made = imgtool(*words, "1M", "--output", "json")
    assert made.document["info"]["format"] == "raw"
    assert made.stderr.startswith("imgtool: warning: ")
    assert made.stderr.endswith(": no format is given; -f qcow2 makes what it says\n")


def test_an_option_before_its_command_is_told_its_place(imgtool: Imgtool) -> None:
    told = imgtool("--output", "json", "info", "x").error
    assert (told["code"], told["hint"]) == ("usage", "it stands behind the command: `imgtool COMMAND --output …`")
    assert "`imgtool vm COMMAND -q …`" in imgtool("vm", "-q", "list").stderr
    assert "`imgtool --help` shows" in imgtool("--nosuch", "info").stderr

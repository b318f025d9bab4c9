"""What is written with `--output json` is of the shape that `imgtool schema` prints."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import msgspec
import pytest

from fixtures import pipelines
from imgtool.build.recipe import parse_recipe
from imgtool.cli.main import cli
from imgtool.cli.schema import DOCUMENTS, schema_of
from imgtool.machine.profile import parse_profile
from tests.cli.conftest import Imgtool
from tests.conftest import Images


def shape(name: str) -> Any:
    module, _, attribute = DOCUMENTS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture
def store(images: Images) -> Path:
    """base ← mid ← top, base ← side."""
    images.base("base")
    images.overlay("mid", "base")
    images.overlay("top", "mid")
    images.overlay("side", "base")
    return images.directory


DONE = {
    "overlay-new": ["overlay", "new", "base", "new"],
    "overlay-list": ["overlay", "list", "base", "--all"],
    "overlay-reset": ["overlay", "reset", "side"],
    "overlay-delete": ["overlay", "delete", "side"],
    "chain": ["chain", "show", "."],
    "chain-verify": ["chain", "verify", "."],
    "chain-repair": ["chain", "repair", "."],
    "chain-anchor": ["chain", "anchor", "top"],
    "chain-move": ["chain", "move", "base", "moved"],
    "chain-flatten": ["chain", "flatten", "top"],
    "chain-shorten": ["chain", "shorten", "top"],
    "chain-collect": ["chain", "collect", ".", "--keep", "top"],
    "chain-layers": ["chain", "layers", "top"],
    "chain-diff": ["chain", "diff", "base", "top"],
    "commit": ["commit", "top"],
    "rebase": ["rebase", "-b", "base", "top"],
    "convert": ["convert", "-O", "qcow2", "top", "new"],
    "create": ["create", "new", "1M"],
    "resize": ["resize", "top", "+1M"],
    "snapshot": ["snapshot", "-c", "one", "top"],
    "snapshots": ["snapshot", "top"],
    "amend": ["amend", "-o", "lazy_refcounts=on", "top"],
    "bitmap": ["bitmap", "--add", "top", "since"],
    "compare": ["compare", "base", "top"],
    "map": ["map", "top"],
    "measure": ["measure", "top"],
    "check": ["check", "top"],
    "info": ["info", "top"],
    "doctor": ["doctor"],
    "vm-list": ["vm", "list"],
    "net-list": ["net", "list"],
    "layers-list": ["layers", "list"],
    "layers-tree": ["layers", "tree"],
    "layers-verify": ["layers", "verify"],
    "layers-prune": ["layers", "prune"],
    "boot-cpus": ["boot", "--cpu", "help"],
    "boot-machines": ["boot", "--machine", "help"],
    "boot-nic-models": ["boot", "--nic-model", "help"],
    "boot-plan": ["boot", "top", "--accel", "tcg", "--dry-run"],
    "plan": ["resize", "top", "+1M", "--dry-run"],
}


@pytest.mark.parametrize("name", DONE)
def test_a_document_is_of_its_schema(imgtool: Imgtool, store: Path, name: str) -> None:
    done = imgtool(*DONE[name], "--output", "json", cwd=store)
    assert done.status == 0, done.stderr
    msgspec.convert(done.document, shape(name))
    assert undocumented(done.document, imgtool("schema", name).document) == []


def undocumented(document: Any, schema: Any) -> list[str]:
    """The keys in `document` that `schema` says nothing of."""
    definitions = schema.get("$defs", {})

    def look(value: Any, known: Any, at: str) -> list[str]:
        if "$ref" in known:
            known = definitions[known["$ref"].rpartition("/")[2]]
        for one in known.get("anyOf", ()):
            if jsonschema.Draft202012Validator({**one, "$defs": definitions}).is_valid(value):
                return look(value, one, at)
        if isinstance(value, list):
            return [word for item in value for word in look(item, known.get("items", {}), f"{at}[]")]
        if not isinstance(value, dict) or "properties" not in known:
            return []
        of_keys = known["properties"]
        if not known.get("additionalProperties"):
            unknown = [f"{at}.{key}" for key in value if key not in of_keys]
        else:
            unknown = []
        return unknown + [
            word for key, item in value.items() if key in of_keys for word in look(item, of_keys[key], f"{at}.{key}")
        ]

    return look(document, schema, "$")


def answering(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The commands that have --output json."""
    here = click.Context(group)
    for name in group.list_commands(here):
        command = group.get_command(here, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from answering(command, (*path, name))
        elif any("--output" in param.opts for param in command.params):
            yield (*path, name)


def test_each_command_that_answers_in_json_has_a_schema_of_its_name() -> None:
    found = ["-".join(path) for path in answering(cli)]
    assert len(found) > 50
    assert [name for name in found if name not in DOCUMENTS] == []


def test_the_words_below_a_field_are_in_its_schema(imgtool: Imgtool) -> None:
    fields = imgtool("schema", "vm").document["$defs"]["Status"]["properties"]
    assert fields["created"]["description"] == "Seconds since the epoch."
    given = imgtool("schema", "recipe").document["$defs"]
    assert all("\n    " not in one.get("description", "") for one in given.values())


def test_what_was_brought_back_and_deleted_has_schemas(imgtool: Imgtool, store: Path) -> None:
    for verb in ("undo", "purge"):
        assert imgtool("chain", "collect", ".", "--keep", "top", cwd=store).status == 0
        done = imgtool("chain", "collect", ".", f"--{verb}", "--output", "json", cwd=store)
        assert msgspec.convert(done.document, shape(f"chain-collect-{verb}"))
        assert undocumented(done.document, imgtool("schema", f"chain-collect-{verb}").document) == []


def test_what_is_put_away_and_an_error_have_schemas(imgtool: Imgtool, store: Path) -> None:
    imgtool("chain", "collect", ".", "--keep", "top", cwd=store)
    listed = imgtool("chain", "collect", ".", "--list", "--output", "json", cwd=store)
    assert len(msgspec.convert(listed.document, shape("chain-collect-list"))) == 1
    refused = imgtool("info", "gone", "--output", "json", cwd=store)
    assert msgspec.convert(json.loads(refused.stderr), shape("error")).error.path == str(store / "gone")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_schema_has_words_for_each_struct_and_field(name: str) -> None:
    definitions = schema_of(name)["$defs"]
    assert definitions
    assert [struct for struct, found in definitions.items() if not found.get("description")] == []
    assert [
        f"{struct}.{field}"
        for struct, found in definitions.items()
        for field, about in found.get("properties", {}).items()
        if not about.get("description")
    ] == []


def test_what_only_a_qcow2_has_is_in_the_schema_of_info(imgtool: Imgtool, store: Path) -> None:
    definitions = imgtool("schema", "info").document["$defs"]
    assert {"$ref": "#/$defs/Qcow2Info"} in definitions["FormatSpecific"]["properties"]["data"]["anyOf"]
    data = imgtool("info", "top", "--output", "json", cwd=store).document["format-specific"]["data"]
    assert set(data) <= set(definitions["Qcow2Info"]["properties"])


def test_a_profile_is_called_profile_and_machine(imgtool: Imgtool) -> None:
    assert "drive" in imgtool("schema", "profile").document["$defs"]["Machine"]["properties"]
    assert imgtool("schema", "profile").stdout == imgtool("schema", "machine").stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("verify", "'verify'\nhint: did you mean 'chain-verify' or 'layers-verify'? `imgtool schema` lists them\n"),
        ("chain-shov", "'chain-shov'\nhint: did you mean 'chain-show'? `imgtool schema` lists them\n"),
        ("no\tpe", "'no\\tpe'\nhint: `imgtool schema` lists them\n"),
    ],
)
def test_a_name_that_is_none_says_what_was_meant_and_where_they_are_listed(
    imgtool: Imgtool, name: str, said: str
) -> None:
    done = imgtool("schema", name)
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr == f"imgtool: error: there is no document {said}"


def test_without_a_name_they_are_listed(imgtool: Imgtool) -> None:
    assert imgtool("schema").stdout.splitlines() == sorted(DOCUMENTS)


PROFILE = """\
machine = "q35,usb=off"
memory = "2G"
smp = 2
rng = true
network = ["user", { type = "nat", net = "lab" }]
drive = ["file=a.qcow2", { file = "b.raw", format = "raw" }]
numa = ["node,cpus=0", "node,cpus=1"]
vga = "std"
agent = true
"""


def test_what_is_read_is_valid_as_its_schema_says() -> None:
    """Editors look into it; option strings and sizes in QEMU's notation are as right as tables and bytes."""
    parse_profile(PROFILE)
    jsonschema.validate(tomllib.loads(PROFILE), schema_of("profile"))
    for right, wrong in (("agent = true", "agent = 1"), ("rng = true", "rng = [1]"), ("smp = 2", "smp = [2]")):
        assert right in PROFILE
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tomllib.loads(PROFILE.replace(right, wrong)), schema_of("profile"))
    text = Path(pipelines.__path__[0], "web.toml").read_text()
    several = text.replace("[output]", '[[output]]\npath = "a"\n[[output]]')
    several = several.replace("[image]", '[args]\nV = 1\n[image]\nsize = "8G"')
    for recipe in (text, several):
        parse_recipe(recipe)
        jsonschema.validate(tomllib.loads(recipe), schema_of("recipe"))


def test_what_a_file_may_hold_is_told_to_people_too(imgtool: Imgtool) -> None:
    lines = imgtool("schema", "recipe", "--toml").stdout.splitlines()
    headers = [line.partition(" ")[0] for line in lines if line.startswith("[")]
    names = ["image", "machine", "[layer]", "[layer.copy]", "[layer.fetch]", "[check]", "[output]"]
    assert headers == [f"[{name}]" for name in names]
    assert max(map(len, lines)) <= 120
    copies = lines[headers_at(lines, "[[layer.copy]]") :]
    assert copies[1].split("#")[0].strip() == 'from = "…"'
    assert copies[1].endswith("(needed)")
    machine = lines[headers_at(lines, "[machine]") : headers_at(lines, "[[layer]]")]
    assert not any(line.startswith("kernel") for line in machine), "that is told of profiles"
    profile = imgtool("schema", "profile", "--toml").stdout
    assert "[[network]]" in profile
    assert 'Or: memory = "…" | N' in profile
    for words in (["info"], []):
        refused = imgtool("schema", *words, "--toml")
        assert (refused.status, "these are: machine, profile, recipe" in refused.stderr) == (2, True)


def headers_at(lines: list[str], header: str) -> int:
    return next(number for number, line in enumerate(lines) if line.startswith(header))

"""What is written with `--output json` is of the shape that `imgtool schema` prints."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from imgtool.cli.schema import DOCUMENTS
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
}


@pytest.mark.parametrize("name", DONE)
def test_a_document_is_of_its_schema(imgtool: Imgtool, store: Path, name: str) -> None:
    done = imgtool(*DONE[name], "--output", "json", cwd=store)
    assert done.status == 0, done.stderr
    msgspec.convert(done.document, shape(name))


def test_what_is_put_away_and_an_error_have_schemas(imgtool: Imgtool, store: Path) -> None:
    imgtool("chain", "collect", ".", "--keep", "top", cwd=store)
    listed = imgtool("chain", "collect", ".", "--list", "--output", "json", cwd=store)
    assert len(msgspec.convert(listed.document, shape("chain-collect-list"))) == 1
    refused = imgtool("info", "gone", "--output", "json", cwd=store)
    assert msgspec.convert(json.loads(refused.stderr), shape("error")).error.path == str(store / "gone")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_schema_is_printed(name: str) -> None:
    assert msgspec.json.schema(shape(name))


def test_a_profile_is_called_profile_and_machine(imgtool: Imgtool) -> None:
    assert "drive" in imgtool("schema", "profile").document["$defs"]["Machine"]["properties"]
    assert imgtool("schema", "profile").stdout == imgtool("schema", "machine").stdout


def test_a_name_that_is_none_lists_them(imgtool: Imgtool) -> None:
    for words in ([], ["verify"]):
        done = imgtool("schema", *words)
        assert done.status == 2
        assert "chain-verify" in done.stderr
        assert "\\t" not in done.stderr
        assert len(done.stderr.splitlines()) == 2

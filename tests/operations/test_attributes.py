"""Files and directories that chattr(1) keeps as they are: permissions do not show it, and root cannot write them."""

from __future__ import annotations

import os
import shlex

import pytest

from imgtool.cli.main import main
from tests.files import fixed
from tests.operations.conftest import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may set these attributes")

COMMANDS = [
    ("base.qcow2", "commit --preserve-siblings mid.qcow2"),
    ("base.qcow2", "chain move base.qcow2 new.qcow2"),
    ("base.qcow2", "chain move base.qcow2 mid.qcow2 sib.qcow2 bases/"),
    ("base.qcow2", "snapshot -c one base.qcow2"),
    ("mid.qcow2", "chain move base.qcow2 new.qcow2"),
    ("mid.qcow2", "chain collect . --keep sib.qcow2"),
    ("mid.qcow2", "chain shorten --delete top.qcow2"),
    ("sib.qcow2", "commit --preserve-siblings mid.qcow2"),
    ("sib.qcow2", "chain anchor sib.qcow2"),
    ("top.qcow2", "overlay delete top.qcow2"),
    ("top.qcow2", "chain flatten top.qcow2"),
    ("top.qcow2", "rebase -b base.qcow2 -F qcow2 top.qcow2"),
    ("top.qcow2", "create -f qcow2 --force top.qcow2 1M"),
    (".", "overlay new base.qcow2 new.qcow2"),
    (".", "overlay new base.qcow2 --count 3"),
    (".", "overlay delete top.qcow2"),
    (".", "chain flatten top.qcow2"),
    (".", "chain move top.qcow2 bases/"),
    ("bases", "chain flatten top.qcow2 --to bases/new.qcow2"),
    ("bases", "convert -O qcow2 top.qcow2 bases/new.qcow2"),
    ("bases", "create -f qcow2 bases/new.qcow2 1M"),
]


@pytest.fixture
def kept(store: Store) -> Store:
    store.base("base.qcow2", 1, 1, 1)
    store.overlay("mid.qcow2", "base.qcow2", {1: 2})
    store.overlay("sib.qcow2", "base.qcow2", {2: 4})
    store.overlay("top.qcow2", "mid.qcow2", {2: 3})
    (store / "bases").mkdir()
    return store


@pytest.mark.parametrize("letter", ["i", "a"])
@pytest.mark.parametrize(("what", "command"), COMMANDS)
def test_what_is_to_stay_as_it_is_stops_a_change_before_it_begins(
    what: str,
    command: str,
    letter: str,
    kept: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(kept.directory)
    before = kept.bytes()
    with fixed(letter, kept / what), pytest.raises(SystemExit) as left:
        main(shlex.split(command))
    said = capsys.readouterr().err
    assert left.value.code == 1
    assert f"{kept / what} is {'immutable' if letter == 'i' else 'append-only'} (chattr +{letter})" in said
    assert f"hint: `chattr -{letter} {kept / what}` if it was not meant to stay as it is" in said
    assert kept.bytes() == before
    assert list(kept.directory.rglob(".imgtool-*")) == []

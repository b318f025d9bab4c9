"""The house rules that a reader of one module cannot see: imports go down only, and stay light where that matters."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import imgtool

PACKAGE = Path(imgtool.__file__).parent

FLOORS = {
    "_version": 0,
    "errors": 0,
    "sizes": 1,
    "image": 2,
    "qemu": 3,
    "chain": 4,
    "operations": 5,
    "machine": 5,
    "build": 6,
    "publish": 6,
    "cli": 7,
    "__main__": 8,
}
"""A room may import from lower floors and from itself; rooms of one floor do not know each other."""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[tuple[int, str]]:
    """(line, room) of every import from imgtool, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {(node.lineno, name.split(".")[1]) for name in names if name.startswith("imgtool.")}
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in MODULES} <= set(FLOORS)


def test_imports_go_down_only() -> None:
    breaches = [
        f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        for path in MODULES
        for line, name in imported_rooms(path)
        if name != room(path) and FLOORS[name] >= FLOORS[room(path)]
    ]
    assert breaches == []


def test_only_the_command_line_knows_its_packages() -> None:
    breaches = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in MODULES
        if room(path) not in ("cli", "__main__")
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.Import)
            and {alias.name.split(".")[0] for alias in node.names} & {"click", "humanize", "tqdm"}
        )
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("click", "humanize", "tqdm"))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"))
    ]
    assert breaches == []


STARTING = re.compile(r"(fork|forkpty|popen|posix_spawnp?|spawn[lv]p?e?|system)")
"""What `os` has for starting programs beside imgtool; exec puts one in its place."""


def test_programs_are_started_in_one_place() -> None:
    starters = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and {"subprocess", "multiprocessing"} & {alias.name for alias in node.names})
        or (isinstance(node, ast.ImportFrom) and node.module in ("subprocess", "multiprocessing"))
        or (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and STARTING.fullmatch(node.attr)
        )
    }
    assert starters == {"qemu/child.py"}


HEAVY = {
    "tqdm",
    "asyncio",
    "subprocess",
    "qemu.qmp",
    "humanize",
    "pycdlib",
    "platformdirs",
    "oras",
    "dataclasses",
    "ctypes",
}


def imported(*words: str, **env: str) -> set[str]:
    """The modules that a run of imgtool imports. It knows of no images that other tests made: names that are not
    UTF-8 need more."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "imgtool", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "XDG_STATE_HOME": os.devnull, **env},
    )
    lines = done.stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["info", "--help"], ["chain", "--help"]])
def test_what_a_command_does_not_use_is_not_imported(words: list[str], tmp_path: Path) -> None:
    imported(
        "--version", XDG_CACHE_HOME=str(tmp_path)
    )  # that QEMU is asked once an upgrade is not what this is about
    found = imported(*words, XDG_CACHE_HOME=str(tmp_path))
    assert found & (HEAVY | {"msgspec", "hashlib"}) == set()


def test_completing_a_word_imports_the_groups_on_the_way_and_no_more() -> None:
    words = {"_IMGTOOL_COMPLETE": "bash_complete", "COMP_WORDS": "imgtool chain sh", "COMP_CWORD": "2"}
    found = imported(**words)
    assert "imgtool.cli.options" in found  # which the group `chain` needs
    assert found & (HEAVY | {"msgspec", "hashlib", "imgtool.image.header"}) == set()


def test_what_info_does_not_use_is_not_imported(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(65536))
    found = imported("info", str(image), "--output", "json")
    assert "imgtool.qemu.img_info" in found
    assert (
        found
        & (
            HEAVY
            | {"hashlib", "tempfile", "shutil", "imgtool.qemu.img_make", "imgtool.qemu.img_read", "imgtool.chain"}
        )
        == set()
    )


@pytest.mark.parametrize("network", [["--network", "none"], []])
def test_what_boot_does_not_use_is_not_imported(tmp_path: Path, network: list[str]) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(65536))
    found = imported("boot", str(image), "--accel", "tcg", *network, "--dry-run")
    assert "imgtool.machine.plan" in found
    assert found & (HEAVY | {"hashlib", "json", "tempfile", "shutil", "socket", "imgtool.qemu.qemu_img"}) == set()


@pytest.mark.parametrize("words", ["check", "map", "snapshot -l", "chain layers", "chain show"])
def test_what_looking_at_an_image_does_not_need_is_not_imported(tmp_path: Path, words: str) -> None:
    """hashlib is OpenSSL."""
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    found = imported(*words.split(), str(image), "--output", "json")
    assert "imgtool.image.header" in found
    assert found & (HEAVY | {"hashlib", "json", "random", "tempfile"}) == set()

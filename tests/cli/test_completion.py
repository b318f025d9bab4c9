"""Completion, in the shells themselves: what stands on the line once somebody has pressed Tab."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import msgspec
import pexpect
import pytest

from imgtool.build.store import MANIFEST, Manifest
from imgtool.chain.findings import MENDED
from imgtool.cli import words
from imgtool.machine.nets import store
from imgtool.operations.repair import ACTIONS
from tests.cli.conftest import Imgtool
from tests.conftest import Images

Complete = Callable[[str], list[str]]

SHELLS = {
    "bash": ("bash --norc --noprofile -i", 'eval "$(imgtool completion bash)"'),
    "zsh": ("zsh -f -i", 'autoload -Uz compinit; compinit -u -D; eval "$(imgtool completion zsh)"'),
    "fish": ("fish --no-config -i", "imgtool completion fish | source"),
}


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, images: Images, tmp_path: Path) -> Iterator[Complete]:
    """Types a line and Tab into a shell, and returns the words that the shell then has there."""
    program, setup = SHELLS[request.param]
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "HOME": str(home), "PATH": path, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        env.pop(name, None)
    shell = pexpect.spawn(
        program, cwd=str(images.directory), env=env, dimensions=(40, 200), encoding="utf-8", timeout=60
    )
    try:
        shell.sendline(f"{setup}; echo re''ady")
        shell.expect("ready")

        def run(line: str) -> list[str]:
            shell.send(f"{line}\t\x01printf 'GOT[%s]\\n' \x05; echo do''ne\r")
            shell.expect("done\r?\n")
            return re.findall(r"GOT\[([^%\r\n]*)\]", str(shell.before))

        yield run
    finally:
        shell.close(force=True)


def test_each_shell_completes_what_stands_at_the_cursor(complete: Complete, images: Images) -> None:
    for name in ("my base.qcow2", "plain.qcow2", "us er.yaml", "a=b,c.qcow2"):
        (images / name).touch()
    assert complete("imgtool chain ver") == ["imgtool", "chain", "verify"]
    assert complete("imgtool info --outp") == ["imgtool", "info", "--output"]
    assert complete("imgtool info --output js") == ["imgtool", "info", "--output", "json"]
    assert complete("imgtool info --output=js") == ["imgtool", "info", "--output=json"]
    assert complete("imgtool info my") == ["imgtool", "info", "my base.qcow2"]
    assert complete("imgtool info my\\ b") == ["imgtool", "info", "my base.qcow2"]
    assert complete("imgtool info a") == ["imgtool", "info", "a=b,c.qcow2"]
    assert complete("imgtool convert --backing=my") == ["imgtool", "convert", "--backing=my base.qcow2"]
    assert complete("imgtool convert -O qco") == ["imgtool", "convert", "-O", "qcow"]  # qcow2 and qcow
    assert complete("imgtool boot --cloud-init us") == ["imgtool", "boot", "--cloud-init", "us er.yaml"]
    assert complete("imgtool boot --drive file=pl") == ["imgtool", "boot", "--drive", "file=plain.qcow2"]
    assert complete("imgtool boot --drive file=x,for") == ["imgtool", "boot", "--drive", "file=x,format="]
    assert complete("imgtool boot --drive file=x,if=v") == ["imgtool", "boot", "--drive", "file=x,if=virtio"]
    assert complete("imgtool boot --network us") == ["imgtool", "boot", "--network", "user"]
    assert complete("imgtool build --secret TOKEN=us") == ["imgtool", "build", "--secret", "TOKEN=us er.yaml"]
    images.base("disk.qcow2")
    images.qemu_img("snapshot", "-c", "before-upgrade", images / "disk.qcow2")
    line = ["imgtool", "snapshot", "disk.qcow2", "-d", "before-upgrade"]
    assert complete("imgtool snapshot disk.qcow2 -d be") == line
    create = ["imgtool", "create", "-f", "qcow2", "-o"]
    assert complete("imgtool create -f qcow2 -o compr") == [*create, "compression_type="]
    assert complete("imgtool create -f qcow2 -o nocow=on,compat=1") == [*create, "nocow=on,compat=1.1"]
    assert complete("imgtool chain repair --only missing") == [
        "imgtool",
        "chain",
        "repair",
        "--only",
        "missing-parent",
    ]


def candidates(imgtool: Imgtool, line: str, layers: str = "") -> list[str]:
    done = imgtool(COMP_WORDS=line, _IMGTOOL_COMPLETE="fish_complete", IMGTOOL_LAYERS=layers)
    assert (done.status, done.stderr) == (0, "")
    return [line.split("\t")[1] for line in done.stdout.splitlines() if line.startswith("plain\t")]


def test_a_line_that_makes_no_sense_has_no_candidates_and_no_error(imgtool: Imgtool) -> None:
    for line in ("imgtool nosuch ", "imgtool chain nosuch ", "imgtool build --nosuch x", "imgtool boot a b"):
        assert candidates(imgtool, line + " x") == []


def test_words_that_an_option_knows_are_completed(imgtool: Imgtool) -> None:
    assert candidates(imgtool, "imgtool doctor --need tcg,kv") == ["tcg,kvm"]
    assert candidates(imgtool, "imgtool boot x -d --wait a") == ["agent"]
    assert candidates(imgtool, "imgtool vm wait x --for cl") == ["cloud-init"]
    assert candidates(imgtool, "imgtool vm wait x --for e") == ["ended"]
    assert candidates(imgtool, "imgtool boot --wait e") == []
    assert candidates(imgtool, "imgtool check -f qco") == ["qcow2", "qcow"]
    assert candidates(imgtool, "imgtool boot --drive file=x,snapshot=") == [
        "file=x,snapshot=on",
        "file=x,snapshot=off",
    ]


def test_options_of_formats_are_completed(imgtool: Imgtool, images: Images) -> None:
    images.base("disk.qcow2")
    assert candidates(imgtool, "imgtool create -o ") == ["preallocation=", "nocow=", "extent_size_hint=", "help"]
    assert candidates(imgtool, "imgtool convert -f raw -O vmdk -o subformat=mono") == [
        "subformat=monolithicSparse",
        "subformat=monolithicFlat",
    ]
    assert candidates(imgtool, "imgtool measure -O qcow2 -o compat=1.1,data_") == [
        "compat=1.1,data_file=",
        "compat=1.1,data_file_raw=",
    ]
    assert candidates(imgtool, "imgtool overlay new base.qcow2 -o ext") == ["extended_l2=", "extent_size_hint="]
    assert candidates(imgtool, f"imgtool amend {images / 'disk.qcow2'} -o la") == ["lazy_refcounts="]
    assert candidates(imgtool, "imgtool amend -f luks -o state=") == ["state=active", "state=inactive"]
    assert candidates(imgtool, f"imgtool chain flatten {images / 'disk.qcow2'} --to x -o com") == [
        "compat=",
        "compression_type=",
    ]
    assert candidates(imgtool, "imgtool create -f nosuch -o ") == ["help"]


def test_internal_snapshots_are_completed_for_the_image_on_the_line(imgtool: Imgtool, images: Images) -> None:
    disk = images.base("disk.qcow2")
    for name in ("before", "after work", "-x", "be\x1b\n"):
        images.qemu_img("snapshot", "-c", name, disk)
    os.mkfifo(images / "pipe.qcow2")
    # a name that a shell would divide or a command take for an option is offered by its ID
    assert candidates(imgtool, f"imgtool snapshot {disk} -d ") == ["before", "2", "3", "4"]
    assert candidates(imgtool, f"imgtool snapshot {disk} --apply=be") == ["--apply=before"]
    assert candidates(imgtool, f"imgtool measure {disk} -O raw -l be") == ["before"]
    assert candidates(imgtool, f"imgtool convert {images / 'pipe.qcow2'} {disk} -l be") == ["before"]
    assert candidates(imgtool, f"imgtool snapshot {images / 'pipe.qcow2'} -d ") == []
    assert candidates(imgtool, f"imgtool snapshot {images / 'gone.qcow2'} -d ") == []
    assert candidates(imgtool, "imgtool snapshot -d ") == []


def test_defects_that_can_be_repaired_are_completed(imgtool: Imgtool) -> None:
    assert candidates(imgtool, "imgtool chain repair . --only le") == ["leftover", "leaks"]
    assert set(MENDED) == set(ACTIONS)


def test_layers_of_the_recipe_are_completed(imgtool: Imgtool, tmp_path: Path) -> None:
    recipe = tmp_path / "web.toml"
    recipe.write_text('[[layer]]\nname = "packages"\n[[layer]]\nname = "sealed"\n[[layer]]\nrun = ["x"]\n')
    assert candidates(imgtool, f"imgtool build {recipe} --from-layer ") == ["packages", "sealed"]
    recipe.write_text('[args]\nVERSION = "1"\nSUITE = {}\n')
    assert candidates(imgtool, f"imgtool build {recipe} --arg V") == ["VERSION="]
    for text in ("[[layer]\n", "layer = 1\n", "args = 1\n"):
        recipe.write_text(text)
        assert candidates(imgtool, f"imgtool build {recipe} --from-layer ") == []


def seal_layers(folder: Path, *names: str) -> None:
    """Puts layers of the image `web`, each on the one before, into the store in `folder`: without their images."""
    keys = [f"{number:064x}" for number in range(len(names))]
    for number, (name, key) in enumerate(zip(names, keys, strict=True)):
        sealed = Manifest(
            recipe="web",
            layer=name,
            key=key,
            parent=keys[number - 1] if number else None,
            base="/base.qcow2",
            base_format="qcow2",
            base_content="",
            content="",
            image="layer.qcow2",
            virtual_size=0,
            size=0,
            mtime_ns=0,
            created=number,
            seconds=0,
            qemu="",
            imgtool="",
        )
        (folder / key).mkdir(parents=True)
        (folder / key / MANIFEST).write_bytes(msgspec.json.encode(sealed))


def test_layers_are_completed_by_their_names(imgtool: Imgtool, tmp_path: Path) -> None:
    seal_layers(tmp_path / "layers", "packages", "sealed")
    where = str(tmp_path / "layers")
    assert candidates(imgtool, "imgtool layers show ", where) == ["web@packages", "web@sealed"]
    assert candidates(imgtool, "imgtool layers verify web@p", where) == ["web@packages"]
    assert candidates(imgtool, f"imgtool layers verify --layers {where} web@s") == ["web@sealed"]
    assert candidates(imgtool, "imgtool layers show ", "/dev/null") == []


def test_networks_are_completed_by_their_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store, "root", lambda: str(tmp_path))
    for name in ("lab", "lan", "web"):
        (tmp_path / name).mkdir()
    here = click.Context(click.Command("boot"))
    assert [item.value for item in words.networks(here, "la")] == ["lab", "lan"]
    assert [item.value for item in words.network(here, "nat,queues=2,net=w")] == ["nat,queues=2,net=web"]

"""Hostile images through every command: no file of the host is read into an answer or a copy, none is changed, and
nothing is connected to."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from fixtures.hostile.cases import descriptor, overlay, qcow2, with_data_file
from imgtool.cli.main import cli, main
from imgtool.cli.options import FileName

SECRET = b"the-hosts-own-secret-0123456789. " * 64

Words = Callable[[Path, Path], list[str]]
"""The words after the command's name, for a hostile image and a directory with sound ones."""


class Verb(NamedTuple):
    words: Words
    refused: bool = True
    """Whether the command refuses; others do what they do without opening anything that the image names."""


VERBS: dict[str, Verb] = {
    "create": Verb(lambda bad, at: ["-f", "qcow2", "-b", str(bad), str(at / "new")]),
    "info": Verb(lambda bad, at: [str(bad)]),
    "inspect": Verb(lambda bad, at: [str(bad)], refused=False),
    "check": Verb(lambda bad, at: [str(bad)]),
    "convert": Verb(lambda bad, at: ["-O", "raw", str(bad), str(at / "new")]),
    "compare": Verb(lambda bad, at: [str(at / "sound.qcow2"), str(bad)]),
    "resize": Verb(lambda bad, at: [str(bad), "+1M"]),
    "snapshot": Verb(lambda bad, at: ["-c", "one", str(bad)]),
    "map": Verb(lambda bad, at: [str(bad)]),
    "measure": Verb(lambda bad, at: ["-O", "raw", str(bad)]),
    "amend": Verb(lambda bad, at: ["-o", "lazy_refcounts=on", str(bad)]),
    "bitmap": Verb(lambda bad, at: ["--add", str(bad), "one"]),
    "chain show": Verb(lambda bad, at: [str(bad)], refused=False),
    "chain verify": Verb(lambda bad, at: ["--deep", str(bad)], refused=False),
    "chain layers": Verb(lambda bad, at: [str(bad)]),
    "chain diff": Verb(lambda bad, at: [str(at / "sound.qcow2"), str(bad)]),
    "chain flatten": Verb(lambda bad, at: [str(bad)]),
    "chain shorten": Verb(lambda bad, at: [str(bad)]),
    "chain move": Verb(lambda bad, at: [str(bad), str(at / "elsewhere")], refused=False),
    "chain collect": Verb(lambda bad, at: [str(bad.parent), "--dry-run"], refused=False),
    "chain repair": Verb(lambda bad, at: [str(bad)], refused=False),
    "chain anchor": Verb(lambda bad, at: [str(bad)]),
    "overlay new": Verb(lambda bad, at: [str(bad), str(at / "new")]),
    "overlay list": Verb(lambda bad, at: [str(bad)], refused=False),
    "overlay commit": Verb(lambda bad, at: [str(bad)]),
    "overlay reset": Verb(lambda bad, at: [str(bad)]),
    "overlay delete": Verb(lambda bad, at: [str(bad)], refused=False),
    "commit": Verb(lambda bad, at: [str(bad)]),
    "rebase": Verb(lambda bad, at: ["-b", str(at / "sound.qcow2"), str(bad)]),
    "boot": Verb(lambda bad, at: [str(bad), "--accel", "tcg", "-d", "--name", "hostile"]),
    "push": Verb(lambda bad, at: [str(bad), "127.0.0.1:1/hostile:1"]),
    "export containerdisk": Verb(lambda bad, at: [str(bad), "--layout", str(at / "layout")]),
    "export kubevirt": Verb(lambda bad, at: [str(bad), "--profile", str(at / "vm.toml")]),
    "export libvirt": Verb(lambda bad, at: [str(bad), "--profile", str(at / "vm.toml")]),
    "serve": Verb(lambda bad, at: [str(bad)]),
    "mount": Verb(lambda bad, at: ["--raw", str(bad), str(at / "new")]),
    "sync": Verb(lambda bad, at: [str(bad), "root@127.0.0.1:/elsewhere"]),
}

NOT_IMAGES: dict[str, str] = {
    "build": "takes a recipe; the base it names is guarded, see tests/build",
    "layers push": "takes the store that imgtool itself made",
    "layers pull": "takes the store that imgtool itself made",
    "layers list": "takes the store that imgtool itself made",
    "layers show": "takes the store that imgtool itself made",
    "layers tree": "takes the store that imgtool itself made",
    "layers verify": "takes the store that imgtool itself made",
    "layers prune": "takes the store that imgtool itself made",
    "vm change": "takes an image for a VM that runs, see tests/machine/test_media.py",
    "vm ssh": "takes a key",
    "vm screenshot": "takes a name to write a picture to",
    "pull": "takes a name to write to; what comes is guarded, see tests/publish",
    "import libvirt": "takes a domain's XML, and opens no image that it names",
    "unmount": "takes a directory",
}

MORE: list[tuple[str, Words]] = [
    ("convert", lambda bad, at: ["-n", "-O", "qcow2", str(at / "sound.qcow2"), str(bad)]),
    ("convert", lambda bad, at: ["-O", "qcow2", "-B", str(bad), str(at / "sound.qcow2"), str(at / "new")]),
    ("rebase", lambda bad, at: ["-b", str(bad), str(at / "sound.qcow2")]),
    ("bitmap", lambda bad, at: ["--add", "--merge", "x", "-b", str(bad), str(at / "sound.qcow2"), "one"]),
    ("info", lambda bad, at: ["--backing-chain", str(bad)]),
    ("info", lambda bad, at: ["--image-opts", f"driver=qcow2,file.driver=file,file.filename={bad}"]),
    ("convert", lambda bad, at: ["--image-opts", "-O", "raw", f"driver=qcow2,file.filename={bad}", str(at / "new")]),
    (
        "boot",
        lambda bad, at: [str(at / "sound.qcow2"), "--hdb", str(bad), "--accel", "tcg", "-d", "--name", "hostile"],
    ),
    (
        "boot",
        lambda bad, at: [
            str(at / "sound.qcow2"),
            "--drive",
            f"file={bad}",
            "--accel",
            "tcg",
            "-d",
            "--name",
            "hostile",
        ],
    ),
    (
        "boot",
        lambda bad, at: [str(bad), "--new-overlay", str(at / "new"), "--accel", "tcg", "-d", "--name", "hostile"],
    ),
]
"""Further ways to hand an image to QEMU, all refused."""


class Host(NamedTuple):
    """What a hostile image is after."""

    root: Path
    outside: Path
    images: Path
    listener: socket.socket

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def is_contacted(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.listener.accept()[0].close()
            return True
        return False


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    outside, images = tmp_path / "outside", tmp_path / "images"
    (outside / "directory").mkdir(parents=True)
    for name in ("secret", "victim", "directory/file"):
        (outside / name).write_bytes(SECRET)
    (tmp_path / "run").mkdir(mode=0o700)
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    images.mkdir()
    (images / "hostile").mkdir()
    (images / "elsewhere").mkdir()
    (images / "sound.qcow2").write_bytes(qcow2())
    (images / "vm.toml").write_text('memory = "64M"\n')
    monkeypatch.chdir(images)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Host(tmp_path, outside, images, listener)


def hostile_images(host: Host) -> dict[str, bytes]:
    """File name → an image of every class that refers to something."""
    secret, victim = bytes(host.outside / "secret"), bytes(host.outside / "victim")
    nbd = f"nbd://127.0.0.1:{host.port}/x".encode()
    tree = b'json:{"driver":"raw","file":{"driver":"file","filename":"%s"}}' % secret
    return {
        "backing.qcow2": overlay(secret),
        "relative.qcow2": overlay(b"../../outside/victim"),
        "guessed.qcow2": overlay(secret, None),
        "json.qcow2": overlay(tree),
        "file.qcow2": overlay(b"file:" + secret),
        "vvfat.qcow2": overlay(b"fat:rw:" + bytes(host.outside / "directory")),
        "nbd.qcow2": overlay(nbd),
        "http.qcow2": overlay(f"http://127.0.0.1:{host.port}/x".encode()),
        "data.qcow2": with_data_file(victim),
        "data-json.qcow2": with_data_file(tree),
        "driver.qcow2": overlay(secret, b"vvfat"),
        "flat.vmdk": descriptor(b'RW 4 FLAT "%s" 0' % secret),
    }


def run(capfdbinary: pytest.CaptureFixture[bytes], *words: str) -> tuple[int, bytes]:
    """The command's exit status and all it wrote."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    written = capfdbinary.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, written.out + written.err


def check_host(host: Host, output: bytes) -> None:
    """Nothing came of what the images are after."""
    assert SECRET[:32] not in output
    assert all(line.isprintable() for line in output.decode().splitlines()), output
    for name in ("secret", "victim", "directory/file"):
        assert (host.outside / name).read_bytes() == SECRET
    for folder, _, files in os.walk(host.root):
        if not folder.startswith(str(host.outside)):
            for name in files:
                assert SECRET[:32] not in Path(folder, name).read_bytes(), name
    assert not host.is_contacted()
    assert not os.listdir(host.root / "run") or not any((host.root / "run/imgtool").glob("**/*.sock"))


def commands() -> Iterator[tuple[str, click.Command]]:
    def walk(command: click.Command, ctx: click.Context, name: str) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield name, command
            return
        for word in command.list_commands(ctx):
            found = command.get_command(ctx, word)
            assert found is not None
            yield from walk(found, click.Context(found, parent=ctx, info_name=word), f"{name} {word}".strip())

    yield from walk(cli, click.Context(cli), "")


def test_every_command_that_takes_a_file_is_tried_here() -> None:
    taking = {name for name, command in commands() if any(isinstance(one.type, FileName) for one in command.params)}
    assert taking == VERBS.keys() | NOT_IMAGES.keys()


def test_every_command_that_hands_an_image_to_qemu_takes_trust() -> None:
    for name, command in commands():
        assert name not in VERBS or name == "inspect" or any(one.name == "trust" for one in command.params), name


@pytest.mark.parametrize("verb", VERBS)
def test_no_command_gives_a_hostile_image_what_it_wants(
    host: Host, capfdbinary: pytest.CaptureFixture[bytes], verb: str
) -> None:
    for name, data in hostile_images(host).items():
        bad = host.images / "hostile" / name
        bad.write_bytes(data)
        status, output = run(capfdbinary, *verb.split(), *VERBS[verb].words(bad, host.images))
        check_host(host, output)
        if VERBS[verb].refused:
            assert status not in (0, 3), (name, output)
            assert b" wants " in output, (name, output)
            assert bad.read_bytes() == data, name
            assert not (host.images / "new").exists(), name
        for place in (bad, host.images / "elsewhere" / name):
            place.unlink(missing_ok=True)


@pytest.mark.parametrize(("verb", "words"), MORE, ids=lambda given: given if isinstance(given, str) else "")
def test_nor_does_it_by_other_ways(
    host: Host, capfdbinary: pytest.CaptureFixture[bytes], verb: str, words: Words
) -> None:
    sound = (host.images / "sound.qcow2").read_bytes()
    for name, data in hostile_images(host).items():
        if not name.endswith(".qcow2"):
            continue
        bad = host.images / "hostile" / name
        bad.write_bytes(data)
        status, output = run(capfdbinary, verb, *words(bad, host.images))
        check_host(host, output)
        assert status not in (0, 3), (name, output)
        assert b" wants " in output, (name, output)
        assert bad.read_bytes() == data
        assert not (host.images / "new").exists(), name
        assert (host.images / "sound.qcow2").read_bytes() == sound


def test_an_image_further_down_is_refused_as_well(host: Host, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    (host.images / "base.qcow2").write_bytes(overlay(bytes(host.outside / "secret")))
    top = host.images / "top.qcow2"
    top.write_bytes(overlay(b"base.qcow2", b"qcow2"))
    for words in (["convert", "-O", "raw", str(top), "new"], ["check", str(top)], ["boot", str(top), "--dry-run"]):
        status, output = run(capfdbinary, *words)
        assert status not in (0, 3)
        assert b"base.qcow2 wants" in output
        check_host(host, output)


def test_the_error_names_the_word_that_allows_it(host: Host, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    bad = host.images / "hostile/backing.qcow2"
    bad.write_bytes(overlay(bytes(host.outside / "secret")))
    status, output = run(capfdbinary, "convert", "-O", "raw", str(bad), "new")
    assert status == 1
    assert f"--trust {host.outside}".encode() in output
    status, _ = run(capfdbinary, "convert", "-O", "raw", str(bad), "new", "--trust", str(host.outside))
    assert status == 0
    assert (host.images / "new").read_bytes()[: len(SECRET)] == SECRET

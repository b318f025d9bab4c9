"""--trust, the configuration, and the limits on qemu-img, through the command."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fixtures.hostile.cases import overlay, qcow2
from tests.cli.conftest import Imgtool
from tests.conftest import Images

TWO_GIB = (2 << 30) // 1024


@pytest.fixture
def outside(images: Images) -> Path:
    """An overlay in `vms` that somebody else made on a base in `bases`."""
    (images / "bases").mkdir()
    (images / "vms").mkdir()
    images.base("bases/base.qcow2")
    path = images / "vms/top.qcow2"
    path.write_bytes(overlay(b"../bases/base.qcow2", b"qcow2"))
    return path


def config(images: Images, text: str) -> dict[str, Any]:
    (images / "config.toml").write_text(text)
    return {"IMGTOOL_CONFIG": str(images / "config.toml")}


def test_trust_widens_the_policy_by_a_directory(imgtool: Imgtool, images: Images, outside: Path) -> None:
    done = imgtool("info", outside, "--output", "json")
    assert done.status == 1
    assert done.error["code"] == "policy"
    assert done.error["hint"].endswith(f"--trust {images / 'bases'}")
    assert imgtool("info", outside, "--trust", images / "bases").status == 0
    assert imgtool("info", "top.qcow2", "--trust", "../bases", cwd=outside.parent).status == 0
    assert imgtool("info", outside, "--trust", "nbd").status == 1
    assert imgtool("compare", outside, images / "bases/base.qcow2").status == 0, "both were named"
    done = imgtool("info", outside, "--trust", "nonsense")
    assert done.status == 2
    assert "not something to trust" in done.stderr


def test_compare_never_says_different_for_what_it_refuses(imgtool: Imgtool, images: Images, outside: Path) -> None:
    assert imgtool("compare", outside, outside).status == 2


def test_an_overlay_that_imgtool_made_elsewhere_needs_no_word(
    imgtool: Imgtool, images: Images, outside: Path
) -> None:
    state: dict[str, Any] = {"XDG_STATE_HOME": str(images / "state")}
    made = images / "vms/made.qcow2"
    assert imgtool("overlay", "new", images / "bases/base.qcow2", made, **state).status == 0
    for words in ("info", "check", "boot --dry-run", "chain verify"):
        done = imgtool(*words.split(), made, **state)
        assert done.status == 0, done.stderr
        assert "not-trusted" not in done.stdout
    assert imgtool("info", made, XDG_STATE_HOME=str(images / "other")).status == 1
    assert imgtool("create", "-f", "qcow2", "-b", "vms/made.qcow2", images / "third.qcow2", **state).status == 0
    assert imgtool("info", images / "third.qcow2", "--backing-chain", **state).status == 0


@pytest.mark.parametrize("verb", ["create", "convert", "rebase"])
def test_so_does_what_the_other_verbs_make(imgtool: Imgtool, images: Images, outside: Path, verb: str) -> None:
    state: dict[str, Any] = {"XDG_STATE_HOME": str(images / "state")}
    made = images / "vms/made.qcow2"
    base = "../bases/base.qcow2"
    if verb == "create":
        done = imgtool("create", "-f", "qcow2", "-b", base, made, **state)
    elif verb == "convert":
        done = imgtool("convert", "-O", "qcow2", "-B", base, images / "bases/base.qcow2", made, **state)
    else:
        images.base("vms/made.qcow2")
        done = imgtool("rebase", "-b", base, made, **state)
    assert done.status == 0, done.stderr
    assert imgtool("check", made, **state).status == 0


def test_the_configuration_names_directories_and_protocols(imgtool: Imgtool, images: Images, outside: Path) -> None:
    here = config(images, '[policy]\ndirectories = ["bases"]\n')
    assert imgtool("info", outside, **here).status == 0
    assert imgtool("info", outside, **config(images, f'[policy]\ndirectories = ["{images / "bases"}"]\n')).status == 0
    remote = images / "remote.qcow2"
    remote.write_bytes(overlay(b"nbd://127.0.0.1:1/x"))
    assert imgtool("info", remote).status == 1
    assert imgtool("info", remote, **config(images, '[policy]\nprotocols = ["nbd"]\n')).status == 0
    assert imgtool("info", remote, "--trust", "nbd").status == 0
    home = images / "home/imgtool"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(f'[policy]\ndirectories = ["{images / "bases"}"]\n')
    assert imgtool("info", outside, XDG_CONFIG_HOME=str(images / "home")).status == 0
    assert imgtool("info", outside, XDG_CONFIG_HOME=str(images / "home"), IMGTOOL_CONFIG="").status == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[policy]\ndirectory = ["x"]\n', "did you mean directories?"),
        ("[polcy]\n", "did you mean policy?"),
        ('[policy]\nprotocols = ["ndb"]\n', "did you mean nbd?"),
        ('[policy]\ndirectories = "x"\n', "directories"),
        ("[limits]\nmemory = -1\n", "memory"),
        ('[limits]\nmemory = "much"\n', "memory"),
        ("[limits]\nseconds = 0\n", "seconds"),
        ("[limits\n", "toml.io"),
    ],
)
def test_a_wrong_configuration_is_said_with_its_line(
    imgtool: Imgtool, images: Images, outside: Path, text: str, said: str
) -> None:
    done = imgtool("info", outside, **config(images, text))
    assert done.status == 2
    assert said in done.stderr
    assert "config.toml" in done.stderr


def test_a_configuration_is_read_where_it_is_needed_only(imgtool: Imgtool, images: Images, outside: Path) -> None:
    wrong = config(images, "[nonsense]\n")
    assert imgtool("inspect", images / "bases/base.qcow2", **wrong).status == 0
    assert imgtool("--version", **wrong).status == 0
    assert imgtool("info", images / "bases/base.qcow2", **wrong).status == 2
    assert imgtool("info", images / "bases/base.qcow2", IMGTOOL_CONFIG="/nonexistent/config").status == 2


def limits_of(imgtool: Imgtool, images: Images, *words: str | Path, **env: Any) -> tuple[str, str]:
    """Address space (KiB) and CPU seconds that qemu-img is run with."""
    script = images / "qemu-img"
    script.write_text(f"#!/bin/sh\n{{ ulimit -v; ulimit -t; }} > {images / 'limits'}\nexit 1\n")
    script.chmod(0o755)
    imgtool(*words, IMGTOOL_QEMU_IMG=str(script), **env)
    memory, seconds = (images / "limits").read_text().split()
    return memory, seconds


def test_qemu_img_runs_under_limits_that_options_and_configuration_change(imgtool: Imgtool, images: Images) -> None:
    image = images / "a.qcow2"
    image.write_bytes(qcow2())
    assert limits_of(imgtool, images, "info", image) == (str(TWO_GIB), "30")
    assert limits_of(imgtool, images, "map", image) == (str(TWO_GIB), "unlimited")
    assert limits_of(imgtool, images, "info", image, "--limit-memory", "1G") == (str(TWO_GIB // 2), "30")
    assert limits_of(imgtool, images, "map", image, "--limit-memory", "3G") == (str(TWO_GIB // 2 * 3), "unlimited")
    assert limits_of(imgtool, images, "info", image, "--limit-cpu", "5") == (str(TWO_GIB), "5")
    settings = config(images, '[limits]\nmemory = "4G"\ncpu-seconds = 7\nseconds = 9.5\n')
    assert limits_of(imgtool, images, "info", image, **settings) == (str(TWO_GIB * 2), "7")
    assert limits_of(imgtool, images, "info", image, "--limit-cpu", "8", **settings) == (str(TWO_GIB * 2), "8")


def test_a_crash_and_a_hang_of_qemu_img_are_said_as_what_they_are(imgtool: Imgtool, images: Images) -> None:
    image, script = images / "a.qcow2", images / "qemu-img"
    image.write_bytes(qcow2())
    for text, code in (
        ("kill -SEGV $$", "command-crashed"),
        ("kill -ABRT $$", "command-crashed"),
        ("exec sleep 60", "command-timeout"),
    ):
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        done = imgtool(
            "info",
            image,
            "--output",
            "json",
            IMGTOOL_QEMU_IMG=str(script),
            **config(images, "[limits]\nseconds = 1\n"),
        )
        assert done.status == 1
        assert done.error["code"] == code


def test_convert_measures_before_it_writes(imgtool: Imgtool, images: Images) -> None:
    image, target = images / "a.qcow2", images / "new"
    images.qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    images.run_io(image, "write -P 1 0 8M")
    done = imgtool("convert", "-O", "raw", "--max-size", "63M", image, target)
    assert done.status == 1
    assert "--max-size 67108864" in done.stderr
    assert not target.exists()
    assert imgtool("convert", "-O", "qcow2", "--max-size", "8M", image, target).status == 1
    assert imgtool("convert", "-O", "vmdk", "--max-size", "8M", image, target).status == 1
    settings = config(images, '[limits]\nmax-size = "8M"\n')
    assert imgtool("convert", "-O", "qcow2", image, target, **settings).status == 1
    assert not target.exists()
    assert imgtool("convert", "-O", "qcow2", "--max-size", "12M", image, target, **settings).status == 0
    assert imgtool("convert", "-O", "raw", "--max-size", "64M", "--force", image, target).status == 0


def test_a_relative_data_file_is_the_one_beside_its_image(imgtool: Imgtool, images: Images) -> None:
    """QEMU alone would take the one in the current directory."""
    for folder, byte in (("one", 1), ("two", 2)):
        (images / folder).mkdir()
        for words in (
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "image.qcow2", "1M"],
            ["qemu-io", "-f", "qcow2", "-c", f"write -P {byte} 0 64k", "image.qcow2"],
        ):
            subprocess.run(words, cwd=images / folder, stdout=subprocess.DEVNULL, check=True)
    done = imgtool("convert", "-O", "raw", "../one/image.qcow2", "out.raw", cwd=images / "two")
    assert done.status == 0, done.stderr
    assert (images / "two/out.raw").read_bytes()[:65536] == b"\x01" * 65536
    shown = imgtool("boot", "../one/image.qcow2", "--dry-run", "--output", "json", cwd=images / "two")
    assert str(images / "one/data.raw") in shown.stdout
    assert str(images / "two/data.raw") not in shown.stdout
    done = imgtool("compare", "one/image.qcow2", "two/image.qcow2", cwd=images.directory)
    assert done.status == 2
    assert "current directory" in done.stderr
    assert "depends-on-cwd" in imgtool("chain", "show", "one/image.qcow2", cwd=images.directory).stdout


def test_an_overlay_that_the_next_command_will_refuse_is_warned_of(imgtool: Imgtool, images: Images) -> None:
    images.base("base")
    (images / "elsewhere").mkdir()
    (images / "file").touch()
    nowhere = str(images / "file" / "state")
    words = ("overlay", "new", "base", "elsewhere/top")
    made = imgtool(*words, cwd=images.directory, XDG_STATE_HOME=nowhere)
    assert made.status == 0
    assert (
        f"imgtool: warning: that images in {images / 'elsewhere'} may refer to {images.directory} cannot"
        in made.stderr
    )
    assert made.stderr.endswith(f"Not a directory): use --trust {images.directory}\n")
    refused = imgtool("info", "elsewhere/top", cwd=images.directory, XDG_STATE_HOME=nowhere)
    assert f"--trust {images.directory}" in refused.stderr
    trusted = ("info", "elsewhere/top", "--trust", images.directory)
    assert imgtool(*trusted, cwd=images.directory, XDG_STATE_HOME=nowhere).status == 0
    assert imgtool("overlay", "new", "base", "elsewhere/other", cwd=images.directory).stderr == ""
    beside = imgtool("overlay", "new", "base", "beside", cwd=images.directory, XDG_STATE_HOME=nowhere)
    assert (beside.status, beside.stderr) == (0, "")

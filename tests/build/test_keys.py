"""Hit or miss: one build, then one change at a time, and what the plan says of each layer."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imgtool.build.plan import BuildPlan
from imgtool.build.recipe import Loaded, load_recipe
from imgtool.errors import ConfigError
from tests.build.conftest import Bench

RECIPE = """\
[image]
name = "web"
from = "base.qcow2"
size = "1M"

[machine]
memory = "256M"
smp = 1
accel = "tcg"
kernel = "kernel"
append = "console=ttyS0"

[machine.cloud-init]
user-data = "user-data"

[[layer]]
name = "packages"
run = ["install nginx", "install curl"]
env = { MODE = "quiet" }
secrets = ["TOKEN"]
timeout = "10m"

[[layer]]
name = "site"
copy = [{ from = "site", to = "/srv/www/", mode = "0644", exclude = ["*~"] }, { from = "motd", to = "/etc/motd" },
    { from = "motd", to = "/srv/" }]
script = "setup.sh"

[[layer]]
name = "last"
run = ["true"]

[output]
path = "out/web.qcow2"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A recipe with files, built."""
    folder = tmp_path_factory.mktemp("keys")
    bench = Bench(folder)
    (folder / "out").mkdir()
    (folder / "kernel").write_bytes(b"a kernel")
    (folder / "user-data").write_text("#cloud-config\n")
    (folder / "motd").write_text("welcome\n")
    (folder / "setup.sh").write_text("#!/bin/sh\necho set up\n")
    (folder / "site" / "img").mkdir(parents=True)
    (folder / "site" / "index.html").write_text("hello\n")
    (folder / "site" / "img" / "logo.svg").write_text("<svg/>\n")
    os.symlink("index.html", folder / "site" / "start.html")
    bench.builder(secrets={"TOKEN": "t"}).build(bench.recipe(RECIPE))
    return bench


@pytest.fixture
def changed(built: Bench) -> Iterator[Bench]:
    """The same; afterwards its files are as they were."""
    kept = built.folder.parent / "kept"
    names = ["kernel", "user-data", "motd", "setup.sh", "site", "base.qcow2"]
    kept.mkdir()
    for name in names:
        source = built.folder / name
        if source.is_dir():
            shutil.copytree(source, kept / name, symlinks=True)
        else:
            shutil.copy2(source, kept / name)
    yield built
    for name in names:
        target = built.folder / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif os.path.lexists(target):
            target.unlink()
        shutil.move(kept / name, target)
    kept.rmdir()
    built.recipe(RECIPE)


def states(plan: BuildPlan) -> str:
    return " ".join({"hit": "hit", "miss": "MISS", "unknown": "?"}[layer.state] for layer in plan.layers)


def edit(right: str, wrong: str) -> Callable[[Bench], Loaded]:
    def change(bench: Bench) -> Loaded:
        assert right in RECIPE
        return bench.recipe(RECIPE.replace(right, wrong))

    return change


def touch(change: Callable[[Path], object]) -> Callable[[Bench], Loaded]:
    def apply(bench: Bench) -> Loaded:
        change(bench.folder)
        return bench.recipe(RECIPE)

    return apply


def moved(bench: Bench) -> Loaded:
    """The recipe and all it copies, in another folder; the base stays where it is."""
    folder = bench.folder.parent / "elsewhere"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    for name in ("kernel", "user-data", "motd", "setup.sh"):
        shutil.copy(bench.folder / name, folder / name)
    shutil.copytree(bench.folder / "site", folder / "site", symlinks=True)
    text = RECIPE.replace('"base.qcow2"', f'"{bench.folder / "base.qcow2"}"')
    (folder / "other.toml").write_text(text)
    return load_recipe(str(folder / "other.toml"))


def _relink(folder: Path) -> None:
    (folder / "site" / "start.html").unlink()
    os.symlink("img/logo.svg", folder / "site" / "start.html")


def _same_bytes_by_another_name(bench: Bench) -> Loaded:
    shutil.copy2(bench.folder / "motd", bench.folder / "notice")
    return bench.recipe(RECIPE.replace('"motd", to = "/srv/"', '"notice", to = "/srv/"'))


def _same_base_elsewhere(bench: Bench) -> Loaded:
    shutil.copy(bench.folder / "base.qcow2", bench.folder / "copy.qcow2")
    return bench.recipe(RECIPE.replace("base.qcow2", "copy.qcow2"))


def _write_base(bench: Bench) -> Loaded:
    from tests.conftest import Images

    Images(bench.folder).run_io(bench.folder / "base.qcow2", "write -P 9 0 512")
    return bench.recipe(RECIPE)


def _reformat_base(bench: Bench) -> Loaded:
    """The same disk in another format: a guest reads the same."""
    bench.qemu_img.convert(
        bench.folder / "base.qcow2", bench.folder / "base.raw", output_format="raw", overwrite=True
    )
    return bench.recipe(RECIPE.replace("base.qcow2", "base.raw"))


HIT = "hit hit hit"

CASES: dict[str, tuple[Callable[[Bench], Loaded], str, str]] = {
    "nothing": (touch(lambda _: None), HIT, ""),
    "a command": (edit("install curl", "install wget"), "MISS ? ?", "install wget"),
    "the order of commands": (
        edit('["install nginx", "install curl"]', '["install curl", "install nginx"]'),
        "MISS ? ?",
        "step.run",
    ),
    "an environment variable's value": (edit('"quiet"', '"loud"'), "MISS ? ?", "step.env.MODE: quiet → loud"),
    "a secret's name": (edit('"TOKEN"', '"KEY"'), "MISS ? ?", "step.secrets"),
    "the executor": (edit('accel = "tcg"', 'accel = "tcg"\nexecutor = "serial"'), "MISS MISS MISS", "step.executor"),
    "ready": (edit('accel = "tcg"', 'accel = "tcg"\nready = "agent"'), "MISS MISS MISS", "ready: none → agent"),
    "the disk's size": (edit('"1M"', '"2M"'), "MISS MISS MISS", "disk.size: 1048576 → 2097152"),
    "the machine type": (edit("smp = 1", 'machine = "q35"'), "MISS MISS MISS", "machine.machine.type: none → q35"),
    "the firmware": (edit("smp = 1", "firmware = { uefi = true }"), "MISS MISS MISS", "machine.firmware.uefi"),
    "the kernel's command line": (edit("ttyS0", "ttyS1"), "MISS MISS MISS", "machine.append"),
    "the kernel's bytes": (
        touch(lambda folder: (folder / "kernel").write_bytes(b"another")),
        "MISS MISS MISS",
        "machine.kernel",
    ),
    "a disk beside it": (edit("smp = 1", 'hdb = "motd"'), "MISS MISS MISS", "machine.drives"),
    "a floppy": (edit("smp = 1", 'fda = "motd"'), "MISS MISS MISS", "machine.drives"),
    "the user data": (
        touch(lambda folder: (folder / "user-data").write_text("#cloud-config\nx: 1\n")),
        "MISS MISS MISS",
        "machine.cloud-init.user-data",
    ),
    "a copied file's byte": (
        touch(lambda folder: (folder / "site" / "index.html").write_text("hellO\n")),
        "hit MISS ?",
        "index.html: bytes",
    ),
    "a copied file's mode": (
        touch(lambda folder: (folder / "motd").chmod(0o755)),
        "hit MISS ?",
        "the file: mode 0644 → 0755",
    ),
    "a copied file's mode, where the recipe says another": (
        touch(lambda folder: (folder / "site" / "index.html").chmod(0o600)),
        HIT,
        "",
    ),
    "a file that is excluded": (
        touch(lambda folder: (folder / "site" / "img" / "logo.svg~").write_text("")),
        HIT,
        "",
    ),
    "what is excluded": (edit('exclude = ["*~"]', 'exclude = ["*.svg"]'), "hit MISS ?", "img/logo.svg is gone"),
    "how that is said": (edit('exclude = ["*~"]', 'exclude = ["*.bak", "*~"]'), HIT, ""),
    "a copied link's target": (touch(_relink), "hit MISS ?", "start.html: link target index.html → img/logo.svg"),
    "a new file": (
        touch(lambda folder: (folder / "site" / "new.html").write_text("")),
        "hit MISS ?",
        "new.html is new",
    ),
    "a file less": (
        touch(lambda folder: (folder / "site" / "img" / "logo.svg").unlink()),
        "hit MISS ?",
        "img/logo.svg is gone",
    ),
    "a renamed file": (
        touch(lambda folder: (folder / "site" / "img" / "logo.svg").rename(folder / "site" / "img" / "l.svg")),
        "hit MISS ?",
        "img/l.svg is new",
    ),
    "the byte of a file that is copied alone": (
        touch(lambda folder: (folder / "motd").write_text("Welcome\n")),
        "hit MISS ?",
        "the file: bytes",
    ),
    "where it is copied to": (edit("/etc/motd", "/etc/issue"), "hit MISS ?", "/etc/motd → /etc/issue"),
    "the name it keeps in the folder it goes into": (
        _same_bytes_by_another_name,
        "hit MISS ?",
        "/srv/motd → /srv/notice",
    ),
    "whose it becomes": (edit('"/srv/www/"', '"/srv/www/", owner = "www"'), "hit MISS ?", "owner: none → www"),
    "the script's bytes": (
        touch(lambda folder: (folder / "setup.sh").write_text("#!/bin/sh\nexit 0\n")),
        "hit MISS ?",
        "step.script.sha256",
    ),
    "the script's interpreter": (
        edit('script = "setup.sh"', 'script = "setup.sh"\ninterpreter = ["bash"]'),
        "hit MISS ?",
        "step.script.interpreter",
    ),
    "a seal action": (edit('run = ["true"]', 'run = ["true"]\nseal = ["trim"]'), "hit hit MISS", "step.seal"),
    "a byte of the base": (_write_base, "MISS ? ?", "what it stands on has another content"),
    "a copied file's time": (touch(lambda folder: os.utime(folder / "site" / "index.html", (1, 1))), HIT, ""),
    "a copied file that was written again as it was": (
        touch(lambda folder: (folder / "site" / "index.html").write_text("hello\n")),
        HIT,
        "",
    ),
    "the folder it lies in": (moved, HIT, ""),
    "the recipe's comments": (edit("[image]", "# a comment\n[image]"), HIT, ""),
    "the memory": (edit('"256M"', '"2G"'), HIT, ""),
    "the number of CPUs": (edit("smp = 1", "smp = 4"), HIT, ""),
    "the accelerator": (edit('"tcg"', '"kvm"'), HIT, ""),
    "a forwarded port": (edit("smp = 1", 'network = ["user,hostfwd=tcp::2222-:22"]'), HIT, ""),
    "the network card": (edit("smp = 1", 'network = ["user,model=e1000"]'), "MISS MISS MISS", "model: none → e1000"),
    "the display": (edit("smp = 1", 'display = "none"'), HIT, ""),
    "a time limit": (edit('timeout = "10m"', 'timeout = "20m"'), HIT, ""),
    "a layer's name": (edit('name = "last"', 'name = "final"'), HIT, ""),
    "the image's name": (edit('name = "web"', 'name = "www"'), HIT, ""),
    "the output": (edit("out/web.qcow2", "out/www.qcow2"), HIT, ""),
    "a layer at the end": (edit("[output]", '[[layer]]\nname = "more"\nrun = ["x"]\n[output]'), f"{HIT} MISS", ""),
    "the base's time": (touch(lambda folder: os.utime(folder / "base.qcow2", (1, 1))), HIT, ""),
    "where the base lies": (_same_base_elsewhere, HIT, ""),
    "the base's format": (_reformat_base, HIT, ""),
}


@pytest.mark.parametrize("case", CASES)
def test_what_makes_a_layer_a_hit_or_a_miss(case: str, changed: Bench) -> None:
    change, expected, why = CASES[case]
    plan = changed.builder().plan(change(changed))
    assert states(plan) == expected
    said = "\n".join(line for layer in plan.layers for line in layer.changes)
    assert why in said, said
    assert changed.behaviour.boots == 1, "a plan starts nothing"


def test_the_key_is_the_same_on_every_machine(changed: Bench) -> None:
    """Held as it is today: whoever changes what goes into a key changes `SCHEMA` with it, or old layers are taken for
    what they are not."""
    plan = changed.builder().plan(changed.recipe(RECIPE))
    assert plan.layers[0].key == "f6f40e904c9b57df88896e8a559fbaa839c1aef4cd582a7b663d4287b95f6307"


@pytest.mark.parametrize(
    ("name", "line"),
    [("kernel", "kernel ="), ("user-data", "user-data ="), ("motd", 'from = "site"'), ("setup.sh", "script =")],
)
@pytest.mark.parametrize("kind", ["fifo", "socket", "device"])
def test_what_is_no_file_is_refused_with_its_line_and_never_waited_for(
    name: str, line: str, kind: str, changed: Bench
) -> None:
    path = changed.folder / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/zero")
    loaded = changed.recipe(RECIPE)
    with pytest.raises(ConfigError, match=r"is no (regular )?file") as caught:
        changed.builder().plan(loaded)
    number = next(at for at, text in enumerate(RECIPE.splitlines(), 1) if line in text)
    assert caught.value.message.startswith(f"{loaded.path}:{number}: {path} "), caught.value.message
    assert caught.value.path == str(path)


def test_a_copied_folder_that_holds_a_fifo_is_refused(changed: Bench) -> None:
    os.mkfifo(changed.folder / "site" / "pipe")
    with pytest.raises(ConfigError, match=r"site/pipe is no file, folder or link"):
        changed.builder().plan(changed.recipe(RECIPE))

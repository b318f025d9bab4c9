"""Building in a real guest: Alpine under TCG, reached by its serial console; and both pipelines."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from fixtures import pipelines
from fixtures.alpine import Alpine
from imgtool.build.recipe import load_recipe
from imgtool.machine.vm import Vm
from tests.build.watching import Watch
from tests.files import state_of
from tests.guests import BOOT_SECONDS, Machines, Shell

PIPELINES = Path(pipelines.__path__[0])
SECRET = "tr0ub4dor-and-3"


class Lab:
    """A folder with the pipelines' recipe and what it names, a layer store, and a runtime directory of its own."""

    def __init__(self, folder: Path, machines: Machines, alpine: Alpine) -> None:
        self.folder = folder
        state = folder / "state"
        self.env = {
            **machines.env,
            "IMGTOOL_LAYERS": str(folder / "layers"),
            "XDG_STATE_HOME": str(state),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        shutil.copy(PIPELINES / "web.toml", folder)
        shutil.copytree(PIPELINES / "site", folder / "site")
        for name, source in (("base.qcow2", alpine.disk), ("vmlinuz", alpine.kernel), ("initrd", alpine.initrd)):
            os.symlink(source, folder / name)

    def run(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, words)),
            env={**self.env, **env},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * BOOT_SECONDS,
            check=False,
        )

    def imgtool(self, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "imgtool", *words, **env)

    def build(self, *words: str, **env: str) -> Any:
        done = self.imgtool("build", "web.toml", "--output", "json", *words, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def images(self) -> dict[str, tuple[int, int]]:
        """Inode and time of every layer's image."""
        return {
            path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self.folder.glob("layers/*/*.qcow2")
        }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, machines: Machines, alpine: Alpine) -> Iterator[Lab]:
    """The recipe, built by the shell script."""
    made = Lab(tmp_path_factory.mktemp("lab"), machines, alpine)
    done = made.run("sh", PIPELINES / "web.sh", made.folder)
    assert done.returncode == 0, done.stderr
    assert "nothing that clones must not share" in done.stdout
    yield made
    shutil.rmtree(made.folder)


def cached(built: Any) -> str:
    return " ".join("cached" if layer["cached"] else "built" for layer in built["layers"])


@pytest.mark.guest
def test_the_shell_script_makes_an_image_and_two_disks(lab: Lab) -> None:
    assert {path.name for path in lab.folder.glob("*.qcow2")} == {
        "base.qcow2",
        "web.qcow2",
        "blue.qcow2",
        "green.qcow2",
    }
    manifest = json.loads((lab.folder / "web.qcow2.manifest.json").read_text())
    assert [layer["name"] for layer in manifest["layers"]] == ["user", "site", "config", "sealed"]
    assert len(manifest["checks"]) == 3
    assert len(lab.images()) == 4


@pytest.mark.guest
def test_python_makes_the_same_from_the_same_layers(lab: Lab) -> None:
    for name in ("blue", "green"):
        (lab.folder / f"{name}.qcow2").unlink()
    before = state_of(lab.folder / "web.qcow2")
    done = lab.run(sys.executable, PIPELINES / "web.py", lab.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "4 layers kept"
    assert (lab.folder / "green.qcow2").exists()
    assert state_of(lab.folder / "web.qcow2") == before


@pytest.mark.guest
def test_nothing_changed_no_vm_is_started(lab: Lab) -> None:
    before = lab.images()
    built = lab.build()
    assert (cached(built), built["boots"], built["output-made"]) == ("cached cached cached cached", 0, False)
    assert lab.images() == before


@pytest.mark.guest
def test_the_last_layer_changed_takes_one_boot_and_keeps_a_secret(lab: Lab) -> None:
    """The new last layer gets a secret and leaves it to the guest which way leads in."""
    for name in ("blue", "green"):
        (lab.folder / f"{name}.qcow2").unlink(missing_ok=True)
    recipe = lab.folder / "web.toml"
    kept = recipe.read_text()
    before = lab.images()
    run = 'run = ["test ${#TOKEN} -eq 15", "echo $TOKEN", "echo done > /etc/done"]\nsecrets = ["TOKEN"]\n'
    more = f'name = "sealed"\nexecutor = "auto"\n{run}'
    changed = kept.replace('name = "sealed"\n', more).partition("[[check]]")
    recipe.write_text(changed[0] + '[output]\npath = "other.qcow2"\n')
    watch = Watch(SECRET, [lab.folder / "layers"], but_environment_of="build")
    try:
        with watch:
            done = lab.imgtool("build", "web.toml", "--output", "json", "--progress", "json", TOKEN=SECRET)
    finally:
        recipe.write_text(kept)
    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert "steps go in by the serial port" in done.stderr  # which is what Alpine has
    assert watch.looks > 5
    assert watch.seen == set()
    assert SECRET not in done.stderr
    assert (cached(built), built["boots"]) == ("cached cached cached built", 1)
    after = lab.images()
    assert all(after[name] == before[name] for name in ("user.qcow2", "site.qcow2", "config.qcow2"))
    layer = lab.folder / "layers" / built["layers"][3]["folder"]
    assert "***" in (layer / "log").read_text()
    for folder, _, names in os.walk(lab.folder):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                assert SECRET.encode() not in path.read_bytes(), path
    assert lab.imgtool("layers", "verify").returncode == 0


@pytest.mark.guest
def test_any_layer_boots_with_its_writes_thrown_away(lab: Lab) -> None:
    before = lab.images()
    words = ["boot", "-d", "web.toml@site", "--name", "layer", "--wait", "serial:~ # $"]
    started = lab.imgtool(*words, "--wait-timeout", str(BOOT_SECONDS))
    try:
        assert started.returncode == 0, started.stderr
    finally:
        lab.imgtool("vm", "kill", "layer")
    assert lab.images() == before


@pytest.mark.guest
def test_a_failing_step_shows_its_words_and_the_layers_before_it_stay(lab: Lab) -> None:
    recipe = lab.folder / "bad.toml"
    text = (lab.folder / "web.toml").read_text().replace("chmod 755 /etc/web.start", "echo so far; ls /nowhere; true")
    recipe.write_text(text.replace("web.qcow2", "bad.qcow2"))
    done = lab.imgtool("build", "bad.toml", "--on-error", "keep")
    assert done.returncode == 1
    line = load_recipe(str(recipe)).line("layer", 2, "run", 1)
    assert f"bad.toml:{line}: the layer config: " in done.stderr
    assert "ended with exit status 1" in done.stderr, done.stderr
    assert "| so far" in done.stderr
    assert "/nowhere: No such file" in done.stderr
    assert not (lab.folder / "bad.qcow2").exists()
    assert (lab.folder / "layers" / "failed-web-config-1" / "log").read_text().count("so far") == 2
    assert lab.imgtool("layers", "verify").returncode == 0
    match = re.search(r"hint: `imgtool (boot .*@failed-web-config-1)` boots what was kept", done.stderr)
    assert match is not None, done.stderr
    words = [*shlex.split(match[1]), "-d", "--name", "kept", "--wait", "serial:~ # $"]
    started = lab.imgtool(*words, "--wait-timeout", str(BOOT_SECONDS))
    try:
        assert started.returncode == 0, started.stderr
        shell = Shell(Vm(os.path.join(lab.env["XDG_RUNTIME_DIR"], "imgtool", "vm"), "kept").file("serial0.sock"))
        assert (
            shell("cat /etc/web.start") == "httpd -p 80 -u web -h /srv/www"
        )  # of the step before the one that failed
        shell.close()
    finally:
        lab.imgtool("vm", "kill", "kept")


@pytest.mark.guest
def test_somebody_mends_the_guest_at_its_console_and_the_build_goes_on(lab: Lab) -> None:
    recipe = lab.folder / "mended.toml"
    text = (lab.folder / "web.toml").read_text().replace("chmod 755 /etc/web.start", "test -e /etc/mended && sync")
    recipe.write_text(text.partition("[[check]]")[0] + '[output]\npath = "mended.qcow2"\n')
    build = pexpect.spawn(
        sys.executable,
        ["-m", "imgtool", "build", "mended.toml", "--on-error", "shell"],
        env=lab.env,
        cwd=lab.folder,
        timeout=BOOT_SECONDS,
        encoding="utf-8",
        dimensions=(40, 200),
    )
    try:
        build.expect_exact("`test -e /etc/mended && sync` ended with exit status 1")
        build.expect_exact("Ctrl-A X leaves it")
        build.send("\r")
        build.expect_exact("~ # ")
        build.send("touch /etc/mended; echo men''ded\r")
        build.expect("\r\nmended\r\n")
        build.expect_exact("~ # ")
        build.send("\x01x")
        build.expect_exact("Try the layer config again?")
        build.send("y\r")
        build.expect_exact("mended.qcow2: made")
        build.expect(pexpect.EOF)
        build.wait()
    finally:
        build.close(force=True)
    assert build.exitstatus == 0
    layers = json.loads(lab.imgtool("layers", "list", "--output", "json").stdout)["layers"]
    assert len(layers) > 4
    plan = json.loads(lab.imgtool("build", "mended.toml", "--plan", "--output", "json").stdout)
    assert [layer["state"] for layer in plan["layers"][:3]] == ["hit", "hit", "miss"]  # by hand is not by recipe

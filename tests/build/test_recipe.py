"""Recipes: what they may hold, and what is said of what they may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.build.recipe import executor_of, load_recipe, parse_recipe, seconds_of
from imgtool.errors import ConfigError

WEB = """\
[image]
name = "web"
from = "debian-12.qcow2"          # a path
size = "8G"

[machine]
memory = "1G"
smp = 2
ready = "agent"

[[layer]]
name = "packages"
run = ["apt-get update",
       "apt-get install -y nginx"]
env = { DEBIAN_FRONTEND = "noninteractive" }
secrets = ["APT_TOKEN"]
max-age = "7d"

[[layer]]
name = "site"
copy = [{ from = "site/", to = "/var/www/html/", owner = "www-data", mode = "0644" }]
run = ["systemctl enable nginx"]

[[layer]]
name = "sealed"
seal = ["machine-id", "trim"]

[[check]]
run = ["nginx -t", "systemctl is-active nginx"]

[output]
path = "web.qcow2"
format = "qcow2"
compression = "zstd"
flatten = true
"""


def test_a_recipe_is_read_with_its_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text(WEB)
    loaded = load_recipe(str(tmp_path / "web.toml"))
    recipe = loaded.recipe
    assert recipe.image.from_ == str(tmp_path / "debian-12.qcow2")
    assert recipe.image.size == 8 << 30
    assert recipe.machine.memory.size == 1 << 30
    assert recipe.layers[1].copy[0].from_ == str(tmp_path / "site")
    assert recipe.outputs[0].path == str(tmp_path / "web.qcow2")
    assert [executor_of(recipe, layer) for layer in recipe.layers] == ["agent"] * 3


def test_every_command_knows_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "web.toml").write_text(WEB)
    loaded = load_recipe(str(tmp_path / "web.toml"))
    lines = WEB.splitlines()
    for place, words in [
        (("layer", 0, "run", 0), "apt-get update"),
        (("layer", 0, "run", 1), "apt-get install"),
        (("check", 0, "run", 1), "systemctl is-active"),
        (("layer", 1, "copy", 0), "copy ="),
        (("layer", 2, "seal"), "seal ="),
    ]:
        assert words in lines[loaded.line(*place) - 1], place


@pytest.mark.parametrize(
    ("right", "wrong", "line", "message", "hint"),
    [
        ("copy =", "coppy =", 21, "unknown key 'coppy'", "did you mean copy?"),
        ("mode =", "mod =", 21, "unknown key 'mod'", "did you mean mode?"),
        ("smp = 2", "smpp = 2", 8, "unknown key 'smpp'", "did you mean smp?"),
        ("ready =", "redy =", 9, "unknown key 'redy'", "did you mean ready?"),
        ("flatten", "flaten", 35, "unknown key 'flaten'", "did you mean flatten?"),
        ("[output]", "[outputt]", 31, "unknown key 'outputt'", "did you mean output?"),
        ('"7d"', '"7 days"', 17, "'7 days' is not a duration", "7d"),
        ('"7d"', "9" * 400, 17, f"'{'9' * 400}' is not a duration", "7d"),
        ('"8G"', '"8X"', 4, "'8X' is not a size", "suffix"),
        ('"agent"', '"agnet"', 9, "machine.ready cannot be 'agnet'", "cloud-init"),
        ('"agent"', '"serial:("', 9, "no regular expression", None),
        ('"trim"', '"trimm"', 26, "trimm", None),
        ('"0644"', '"rw"', 21, "'rw' is not an octal mode", "0644"),
        ('"www-data"', '"www data"', 21, "'www data' is not an owner", "user:group"),
        ('"/var/www/html/"', '"html"', 21, "is not an absolute path", None),
        ('name = "site"', 'name = "packages"', 20, "two layers are called 'packages'", "another name"),
        ('name = "site"', 'name = "../x"', 20, "cannot be called '../x'", "letters"),
        ('"APT_TOKEN"', '"A-B"', 16, "cannot be the name of a variable", None),
        ('"APT_TOKEN"', '"DEBIAN_FRONTEND"', 16, "is in env too", "one place"),
        ('"zstd"', '"lz4"', 34, "output.compression", None),
        ("flatten = true", "flatten = true\nthin = true", 36, "exclude each other", None),
        ('seal = ["machine-id", "trim"]', "", 24, "'sealed' does nothing", "copy, run"),
        ('run = ["systemctl', 'interpreter = ["python3"]\nrun = ["systemctl', 22, "is for a script", "script ="),
        ('max-age = "7d"', "timeout = -5", 17, "timeout cannot be -5", "90s"),
        ('max-age = "7d"', 'timeout = "0s"', 17, "timeout cannot be 0s", "90s"),
        ('format = "qcow2"', 'format = "qcow3"', 33, "output.format cannot be 'qcow3'", "qcow2"),
        ('format = "qcow2"', 'format = "vmdk"', 34, "vmdk knows no compression by zstd", "qcow2"),
        (
            'format = "qcow2"\ncompression = "zstd"',
            'format = "vdi"\ncompression = "zlib"',
            34,
            "vdi knows no",
            "vmdk",
        ),
        (
            'format = "qcow2"\ncompression = "zstd"\nflatten = true',
            'format = "raw"\nflatten = false',
            33,
            "is always a qcow2",
            None,
        ),
        (
            '[output]\npath = "web.qcow2"\nformat = "qcow2"\ncompression = "zstd"\nflatten = true\n',
            "",
            28,
            "no",
            "[output]",
        ),
        ('path = "web.qcow2"', 'path = ""', 32, "output.path is empty", None),
        ('path = "web.qcow2"', 'path = "a\\u0000b"', 32, "output.path holds a NUL character", "\\u0000"),
        ('["nginx -t", "systemctl is-active nginx"]', "[]", 28, "a check that runs nothing", "run ="),
        ("[machine]", "[[machine]]", 6, "machine is a table", None),
        ('run = ["systemctl enable nginx"]', 'run = "true"', 22, "layer[1].run is a list", "write run = […]"),
        ('run = ["systemctl enable nginx"]', 'fetch = "/a"', 22, "is a list of tables, no", "write [[layer.fetch]]"),
        ('from = "debian-12.qcow2"', "", 1, "image needs from =", None),
        ("[[check]]", "[check]", 28, "check is a list of tables", "write [[check]]"),
        ("[image]", "[[image]]", 1, "image is one table", "write [image]"),
        ("[output]", '[[output]]\npath = "./web.qcow2"\n[[output]]', 34, "two outputs are web.qcow2", "another name"),
        (
            "[output]",
            '[[output]]\npath = "a"\nformat = "q"\n[[output]]',
            33,
            "output[0].format cannot be 'q'",
            "qcow2",
        ),
        (
            'run = ["systemctl enable nginx"]',
            '[layer.fetch]\nfrom = "/a"\nto = "a"',
            22,
            "layer[1].fetch is a list of tables",
            "write [[layer.fetch]]",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    right: str, wrong: str, line: int, message: str, hint: str | None
) -> None:
    assert right in WEB
    with pytest.raises(ConfigError) as caught:
        parse_recipe(WEB.replace(right, wrong, 1), "web.toml")
    assert caught.value.message.startswith(f"web.toml:{line}: "), caught.value.message
    assert message in caught.value.message
    if hint is not None:
        assert hint in (caught.value.hint or "")


def test_a_recipe_that_is_missing_or_no_toml_is_an_error_about_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("[image\n")
    with pytest.raises(ConfigError, match="line 1"):
        load_recipe(str(tmp_path / "bad.toml"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), (5, 5), ("5", 5)],
)
def test_durations(text: str | int, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("machine", "executor"),
    [
        ("", "auto"),
        ('ready = "agent"', "agent"),
        ('ready = "ssh"', "ssh"),
        ('ready = "cloud-init"', "auto"),
        ('ready = "ssh"\nexecutor = "auto"', "auto"),
        ('ready = "serial:login:"', "serial"),
        ('ready = "ssh"\nexecutor = "serial"', "serial"),
    ],
)
def test_the_recipe_alone_decides_how_steps_get_into_the_guest(machine: str, executor: str) -> None:
    text = f'[image]\nname = "a"\nfrom = "b"\n[machine]\n{machine}\n[[layer]]\nname = "l"\nrun = ["true"]\n'
    recipe = parse_recipe(text)
    assert executor_of(recipe, recipe.layers[0]) == executor

"""What `import imgtool` hands on."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import imgtool
from imgtool import errors
from imgtool.cli.check import NotCheckedError
from imgtool.image.source import CutShortError
from tests.conftest import Images

INTERNAL = {CutShortError, NotCheckedError}
"""Caught in imgtool itself; and `check`'s UsageError with another exit status."""

PUBLIC = [
    "__version__",
    "ChainError",
    "CommandCrashed",
    "CommandError",
    "CommandTimeout",
    "ConfigError",
    "DecodeError",
    "ImageError",
    "ImageExistsError",
    "ImageFormatError",
    "ImageInUseError",
    "ImageNotFoundError",
    "ImageUnreadableError",
    "ImgtoolError",
    "MachineError",
    "PolicyError",
    "ProgramError",
    "RefusedError",
    "UsageError",
    "Finding",
    "Graph",
    "Image",
    "guard",
    "scan",
    "verify",
    "walk",
    "diff",
    "layers",
    "Header",
    "digest_of",
    "inspect",
    "export_containerdisk",
    "mount",
    "unmount",
    "Server",
    "serve",
    "Ssh",
    "sync",
    "Policy",
    "trusting",
    "read_header",
    "ImageOpts",
    "LayerCache",
    "Limits",
    "Programs",
    "QemuImg",
    "Machine",
    "list_overlays",
    "new_overlay",
    "new_overlays",
    "anchor",
    "collect",
    "commit",
    "delete",
    "flatten",
    "move",
    "rebase",
    "repair",
    "reset",
    "shorten",
    "Connection",
    "DigestError",
    "RegistryAuthError",
    "RegistryError",
    "RegistryNotFoundError",
    "pull",
    "push",
    "format_size",
    "parse_size",
    "Built",
    "build_image",
    "plan_build",
    "prune_layers",
    "verify_layers",
    "lint_image",
    "Watcher",
    "AgentError",
    "AgentUnavailable",
    "configure",
    "NotReady",
    "RunningVm",
    "boot",
    "running_vm",
    "running_vms",
    "fetch",
    "QmpCommandError",
    "QmpUnreachable",
    "StepFailed",
]


def test_the_public_names_are_these() -> None:
    assert sorted(imgtool.__all__) == sorted(PUBLIC)
    assert all(getattr(imgtool, name) is not None for name in imgtool.__all__)


def test_every_public_error_is_handed_on() -> None:
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert defined <= set(imgtool.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(imgtool.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    seen = {alias.asname for node in imports for alias in node.names}
    assert seen | {"__version__"} == set(imgtool.__all__)


def test_import_imgtool_imports_nothing_else() -> None:
    code = "import sys, imgtool; print(*sorted(name for name in sys.modules if name.startswith('imgtool')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["imgtool", "imgtool._version"]


def test_every_error_has_words_a_code_of_its_own_and_a_place_in_the_tree() -> None:
    for module in pkgutil.walk_packages(imgtool.__path__, "imgtool."):
        if module.name != "imgtool.__main__":
            importlib.import_module(module.name)

    def below(kind: type[errors.ImgtoolError]) -> Iterator[type[errors.ImgtoolError]]:
        yield kind
        for one in kind.__subclasses__():
            yield from below(one)

    public = [kind for kind in below(errors.ImgtoolError) if kind not in INTERNAL]
    drawn = re.findall(r"^ +[│├└─ ]*(\w+) *", errors.__doc__ or "", re.MULTILINE)
    assert sorted(kind.__name__ for kind in public) == sorted(drawn)
    assert len({kind.code for kind in public}) == len(public)
    assert all(kind.__doc__ for kind in public)
    for kind in public[1:]:
        assert kind.__doc__ not in {parent.__doc__ for parent in kind.__mro__[1:]}


def documented(thing: object) -> Iterator[str]:
    """The parts of a public name that `help` has no words for."""
    if not inspect.getdoc(thing):
        yield ""
    if not inspect.isclass(thing) or issubclass(thing, Exception):
        return
    for name, part in vars(thing).items():
        if name.startswith("_") and (name != "__init__" or issubclass(thing, msgspec.Struct)):
            continue
        function = part.fget if isinstance(part, property) else getattr(part, "__func__", part)
        if inspect.isfunction(function) and not function.__doc__:
            yield f".{name}"


def test_help_has_words_for_every_public_name_and_its_methods() -> None:
    names = [name for name in imgtool.__all__ if not name.startswith("_")]
    assert [name + part for name in names for part in documented(getattr(imgtool, name))] == []


def test_what_help_refers_to_is_public() -> None:
    """`imgtool.x` in the words of a public name is a public name, a module, or in a module."""
    for name in imgtool.__all__:
        for word in re.findall(r"`imgtool\.([\w.]+)`", inspect.getdoc(getattr(imgtool, name)) or ""):
            assert word in imgtool.__all__ or importlib.import_module(f"imgtool.{word}"), (name, word)


ELSEWHERE = {
    "--cert-dir": "imgtool.Connection(certificates=…)",
    "--trust": "imgtool.trusting",
    "--timeout": "imgtool.Limits(seconds=…)",
    "--list": "only on the command line: `imgtool chain collect`",
    "--new-overlay": "imgtool.new_overlay",
}
"""Option in a hint → what Python has instead of an argument of that name."""


def test_an_option_that_a_hint_names_is_an_argument_in_python() -> None:
    """As `help(imgtool)` says; those of libvirt, networks and builds are not reached from there."""
    calls = [getattr(imgtool, name) for name in imgtool.__all__]
    functions = [call for call in calls if inspect.isfunction(call)]
    functions += [method for _, method in inspect.getmembers(imgtool.QemuImg, inspect.isfunction)]
    arguments = {argument for function in functions for argument in inspect.signature(function).parameters}
    arguments |= set(imgtool.Machine.__struct_fields__)
    unknown = {
        option
        for folder in ("operations", "chain", "qemu", "image", "publish/oci", "publish/sync")
        for option in options_in_hints(Path(imgtool.__file__).parent / folder)
        if option not in ELSEWHERE and option.removeprefix("--").replace("-", "_") not in arguments
    }
    assert unknown == set()


def options_in_hints(folder: Path) -> Iterator[str]:
    """Those of imgtool itself, and not of a command that a hint quotes."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "hint":
                for part in ast.walk(node.value):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield from re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"`[^`]*`", "", part.value))


def test_force_in_a_hint_is_an_argument_or_overwrite(images: Images) -> None:
    base = images.base("base.qcow2")
    top = imgtool.new_overlay(base, images / "top.qcow2").path
    images.run_io(base, "write -P 1 0 64k")
    with pytest.raises(imgtool.RefusedError) as refused:
        imgtool.flatten(top)
    assert "--force" in str(refused.value.hint)
    imgtool.flatten(top, force=True)
    with pytest.raises(imgtool.ImageExistsError) as exists:
        imgtool.flatten(top, to=base, force=True)
    assert "--force" in str(exists.value.hint)
    imgtool.flatten(top, to=base, overwrite=True)
    images.overlay("outside.qcow2", "../outside.qcow2", size="1M")
    (images / "../outside.qcow2").write_bytes(base.read_bytes())
    with pytest.raises(imgtool.PolicyError) as forbidden:
        imgtool.flatten(images / "outside.qcow2")
    word = str(forbidden.value.hint).partition("--trust ")[2]
    with imgtool.trusting(word):
        imgtool.flatten(images / "outside.qcow2")

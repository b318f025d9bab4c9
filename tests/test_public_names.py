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

import imgtool
from imgtool import errors
from imgtool.cli.check import NotCheckedError
from imgtool.image.source import CutShortError

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
    "Limits",
    "Programs",
    "QemuImg",
    "Machine",
    "list_overlays",
    "new_overlay",
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
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
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

"""What the first layer stands on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import msgspec

from imgtool.build.memory import Memory
from imgtool.build.recipe import OCI, WEB, Loaded, load_recipe
from imgtool.chain.graph import Image
from imgtool.chain.walk import guard
from imgtool.errors import ConfigError, ImageNotFoundError, UsageError
from imgtool.image.names import printable
from imgtool.qemu.qemu_img import QemuImg

_SOURCES = "`from` is an image's file, another recipe (.toml), https://…, or oci:REGISTRY/NAME@sha256:HEX"

_FROM_CD = (
    "install from it once: `imgtool create -f qcow2 new.qcow2 20G`, `imgtool boot new.qcow2 --cdrom FILE --boot d`; "
    "or start from a cloud image of the distribution"
)

_PULL = "`imgtool pull` makes a local image of it; in Python, `fetch=imgtool.fetch` does"

Fetch = Callable[[str, str], str]
"""(reference in a registry, digest of its manifest; or URL, digest of the file) → the path of a local image, the same
for the same digest."""

_fetch: ContextVar[Fetch | None] = ContextVar("imgtool.fetch", default=None)


@contextlib.contextmanager
def fetching(fetch: Fetch) -> Iterator[None]:
    """Inside the `with` block, in this thread (or task), `fetch` brings the images in registries that recipes start
    from."""
    before = _fetch.get()
    _fetch.set(fetch)
    try:
        yield
    finally:
        _fetch.set(before)


class Base(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    format: str
    virtual_size: int
    content: str
    """The digest of what a guest reads of it."""


def base_path(loaded: Loaded) -> str:
    """The image that `from` means: itself, or another recipe's output. ConfigError with the line when it is none."""
    given = loaded.recipe.image.from_
    if _is_remote(given):
        return _fetched(loaded, given)
    if not _is_recipe(given):
        return given
    other = load_recipe(given, loaded.given)
    if not other.recipe.outputs:
        raise _wrong(loaded, f"{printable(given)} has no [output]", "give it one, or name an image")
    return other.recipe.outputs[0].path


def _fetched(loaded: Loaded, given: str) -> str:
    """The local image of a reference, whose digest is pinned: a tag may be another image tomorrow."""
    reference, digest = given, ""
    if given.startswith(OCI):
        reference, _, digest = given.removeprefix(OCI).partition("@")
    image = loaded.recipe.image
    pins = {"sha256": image.sha256, "sha512": None if given.startswith(OCI) else image.sha512}
    digest = digest or next((f"{name}:{pin.lower()}" for name, pin in pins.items() if pin is not None), "")
    if not digest:
        hint = "sha256 = or sha512 = beside it; whoever publishes the file publishes them, too"
        if given.startswith(OCI):
            hint = "…@sha256:HEX, or sha256 = beside it: `imgtool push` and `imgtool pull` print it"
        raise _wrong(loaded, f"{printable(given)} may be another image tomorrow: its digest is not pinned", hint)
    fetch = _fetch.get()
    if fetch is None:
        raise _wrong(loaded, f"{printable(given)} has not been pulled", _PULL)
    return fetch(reference, digest)


def _is_remote(given: str) -> bool:
    return given.startswith((OCI, *WEB))


def _is_recipe(given: str) -> bool:
    return given.endswith(".toml") and not _is_remote(given)


def parents(loaded: Loaded) -> list[Loaded]:
    """The recipes that must be built before this one, the first first. ConfigError when they go in a circle."""
    found: list[Loaded] = []
    seen = [os.path.realpath(loaded.path)]
    here = loaded
    while _is_recipe(here.recipe.image.from_):
        below = load_recipe(here.recipe.image.from_, loaded.given)
        real = os.path.realpath(below.path)
        if real in seen:
            raise _wrong(here, f"{printable(below.path)} is made from this recipe's own image", "break the circle")
        seen.append(real)
        found.append(below)
        here = below
    return found[::-1]


def refuse_unknown(loaded: Loaded) -> None:
    """UsageError when a value was given for an argument that neither the recipe nor one it starts from has."""
    recipes = [loaded, *parents(loaded)]
    known = list(dict.fromkeys(name for one in recipes for name in one.arguments))
    for name in loaded.given:
        if name not in known:
            hint = f"it has: {', '.join(known)}" if known else "[args] in the recipe declares them"
            raise UsageError(f"{printable(loaded.path)} has no argument {printable(name)!r}", hint=hint)


def find_base(loaded: Loaded, memory: Memory, qemu_img: QemuImg) -> Base:
    """The recipe's base, digested: from memory unless it was touched. ImageError or ChainError when it cannot be
    used, ConfigError when it is not what the recipe pins."""
    image = loaded.recipe.image
    path = base_path(loaded)
    try:
        chain = guard(path, format=image.format)
    except ImageNotFoundError as error:
        where = f"{printable(loaded.path)}:{loaded.line('image', 'from')}"
        raise ImageNotFoundError(f"{where}: {error.message}", hint=error.hint or _SOURCES, path=error.path) from None
    for name, pin in (("sha256", image.sha256), ("sha512", image.sha512)):
        if pin is None or image.from_.startswith(OCI):  # there the digest is the manifest's
            continue
        found = memory.file_digest(name, path)
        if found != pin.lower():
            raise _wrong(
                loaded, f"{printable(path)} is not the file that {name} pins", f"its {name} is {found}", name
            )
    size = chain[0].virtual_size
    format = chain[0].format
    assert size is not None
    assert format is not None
    if format == "raw" and _is_cd(path):
        raise _wrong(loaded, f"{printable(path)} is a CD-ROM, on which nothing can be built", _FROM_CD)
    return Base(path=path, format=format, virtual_size=size, content=content_of(chain, memory, qemu_img))


def _is_cd(path: str) -> bool:
    """Whether the raw image holds the file system of a CD-ROM (ECMA-119, 8.4), as an installer's does."""
    with open(path, "rb") as file:
        file.seek(16 * 2048 + 1)
        return file.read(5) == b"CD001"


def content_of(chain: list[Image], memory: Memory, qemu_img: QemuImg) -> str:
    """The content digest of a chain that `guard` let pass, remembered by what its files are."""
    from imgtool.chain.content import layers_of
    from imgtool.qemu.digest import content_map

    layers = layers_of(chain)
    size = chain[0].virtual_size
    assert size is not None
    files = [path for layer in layers for path in (layer.path, layer.data_file) if path is not None]
    formats = "+".join(layer.format for layer in layers)

    def compute() -> str:
        found = content_map(qemu_img, layers, size)
        memory.keep_map(found)
        return found.digest

    return memory.digest(f"content:{formats}", files, compute)


def disk_size(loaded: Loaded, base: Base) -> int:
    """The size of the image's disk. ConfigError when it would lose the end of the base."""
    wanted = loaded.recipe.image.size
    if wanted is None:
        return base.virtual_size
    if wanted < base.virtual_size:
        raise _wrong(
            loaded,
            f"the base has {base.virtual_size} bytes, of which image.size would leave {wanted}",
            "a disk is made smaller by its guest first, then by `imgtool resize --shrink`",
            "size",
        )
    return wanted


def _wrong(loaded: Loaded, message: str, hint: str | None, key: str = "from") -> ConfigError:
    line = loaded.line("image", key)
    return ConfigError(f"{printable(loaded.path)}:{line}: {message}", hint=hint, path=loaded.path)

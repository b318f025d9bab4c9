"""Coverage-guided fuzzing of whatever parses bytes of an image: readers, references, inspect.

    pip install atheris && python tests/image/atheris_header.py [-max_total_time=600] [CORPUS…]

The first byte of an input picks what it is given to. A CORPUS directory is made of the hostile and sound images when
it does not exist. Nothing may be raised but ImageFormatError, no more be read than promised, nothing be slow.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

try:
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]
except ImportError:
    sys.exit("pip install atheris")

with atheris.instrument_imports(include=["imgtool.image"]):
    import imgtool.image.anchor
    import imgtool.image.formats.bochs
    import imgtool.image.formats.cloop
    import imgtool.image.formats.dmg
    import imgtool.image.formats.luks
    import imgtool.image.formats.parallels
    import imgtool.image.formats.qcow
    import imgtool.image.formats.qed
    import imgtool.image.formats.vdi
    import imgtool.image.formats.vhdx
    import imgtool.image.formats.vmdk
    import imgtool.image.formats.vpc
    import imgtool.image.references.tree  # noqa: F401
    from imgtool.image.header import FORMATS, parse
    from imgtool.image.inspect import inspect_source
    from imgtool.image.reference import parse as parse_reference
    from imgtool.image.reference import parse_data_file
    from imgtool.image.source import READ_LIMIT, Source

from imgtool.errors import ImageFormatError

HEAD, BLOCK, CLUSTER = 2048, 256, 65536
MOST = 10 * CLUSTER

SLOW = 5.0
"""Seconds; coverage makes everything some ten times slower."""


def unfold(data: bytes) -> bytes:
    """An image from a short input: its first bytes, and further blocks at the beginnings of the next clusters."""
    blocks = [data[at : at + BLOCK] for at in range(HEAD, len(data), BLOCK)]
    return b"".join(
        [data[:HEAD].ljust(CLUSTER if blocks else 0, b"\0"), *(block.ljust(CLUSTER, b"\0") for block in blocks)]
    )


def fold(image: bytes) -> bytes:
    """About the opposite of `unfold`."""
    return image[:HEAD] + b"".join(image[at : at + BLOCK] for at in range(CLUSTER, min(len(image), MOST), CLUSTER))


def whole(data: bytes) -> None:
    found = inspect_source(Source.of_bytes(unfold(data), limit=2 * READ_LIMIT), path="/images/image")
    assert all(one.message.isprintable() for one in found.findings)


def stream(data: bytes) -> None:
    inspect_source(Source.of_bytes(unfold(data), whole=False, limit=2 * READ_LIMIT))


def declared(data: bytes) -> None:
    image, read = unfold(data[1:]), 0

    def at(offset: int, length: int) -> bytes:
        nonlocal read
        read += length
        return image[offset : offset + length]

    try:
        parse(Source(at, len(image)), format=FORMATS[data[0] % len(FORMATS)])
    finally:
        assert read <= READ_LIMIT, read


def reference(data: bytes) -> None:
    found = parse_reference(data, directory="/images")
    assert all(leaf.path is None or leaf.path.startswith("/") for leaf in found.leaves)


def data_file(data: bytes) -> None:
    parse_data_file(data, directory="/images")


TARGETS = (whole, stream, declared, reference, data_file)


def run(data: bytes) -> None:
    if len(data) < 2:
        return
    began = time.monotonic()
    with contextlib.suppress(ImageFormatError):
        TARGETS[data[0] % len(TARGETS)](data[1:])
    if time.monotonic() - began > SLOW:
        raise TimeoutError(f"{time.monotonic() - began:.1f} s")


def make_corpus(directory: Path) -> None:
    from fixtures.hostile.cases import REFERENCES, corpus

    directory.mkdir(parents=True)
    for case in corpus():
        for number in range(2):
            (directory / f"{case.name}.{number}").write_bytes(bytes([number]) + fold(case.data))
        for number, format in enumerate(FORMATS):
            if case.name.endswith(f".{format}"):
                (directory / f"{case.name}.2").write_bytes(bytes([2, number]) + fold(case.data))
    for name, text, *_ in REFERENCES:
        for number in (3, 4):
            (directory / f"{name}.{number}").write_bytes(bytes([number]) + text)


def main() -> Any:
    directories = [Path(word) for word in sys.argv[1:] if not word.startswith("-")]
    for directory in directories:
        if not directory.exists():
            make_corpus(directory)
    options = [] if any(word.startswith("-max_len") for word in sys.argv) else ["-max_len=5000"]
    atheris.Setup([*sys.argv, *options], run)
    os.environ.setdefault("PYTHONHASHSEED", "0")
    atheris.Fuzz()


if __name__ == "__main__":
    main()

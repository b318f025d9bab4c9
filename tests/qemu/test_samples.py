"""The sample images of fixtures/images hold the same disk for every QEMU that can open them."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from imgtool.qemu.process import Limits, run
from imgtool.qemu.programs import Programs

pytestmark = pytest.mark.matrix

IMAGES = Path(__file__).resolve().parents[2] / "fixtures" / "images"
INDEX: dict[str, Any] = json.loads((IMAGES / "index.json").read_text())
UNKNOWN_TO_5_2 = {"qcow2-zstd", "parallels"}
"""Debian builds its QEMU 5.2 without zstd and without parallels."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every sample under its own name, as their references to each other need it."""
    directory = tmp_path_factory.mktemp("samples")
    for packed in IMAGES.glob("*.gz"):
        (directory / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return directory


def test_every_file_of_the_samples_is_in_the_index() -> None:
    named = {f"{file}.gz" for entry in INDEX["images"] for file in entry["files"]}
    assert {path.name for path in IMAGES.iterdir()} == named | {"index.json"}


@pytest.mark.parametrize("entry", INDEX["images"], ids=lambda entry: entry["name"])
def test_a_sample_is_of_its_format_and_holds_its_disk(
    entry: dict[str, Any], unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(unpacked)  # where QEMU looks for a data file with a relative name
    programs = Programs()
    image = str(unpacked / entry["file"])

    def qemu_img(*words: str) -> tuple[int, bytes]:
        done = run([programs.find("qemu-img"), *words], limits=Limits(seconds=60))
        return done.status, done.stdout

    status, answer = qemu_img("info", "--output=json", "-f", entry["format"], image)
    if programs.version("qemu-img")[:2] == (5, 2) and entry["name"] in UNKNOWN_TO_5_2:
        assert status == 1
        return
    info = json.loads(answer)
    assert (info["format"], info["virtual-size"]) == (entry["format"], entry["virtual-size"])
    opened = ["-f", entry["format"], image]
    if entry["image-opts"]:
        opened = ["--object", INDEX["secret"], "--image-opts", entry["image-opts"] + image]
    status, _ = qemu_img("convert", *opened, "-O", "raw", str(tmp_path / "disk"))
    if entry["sha256"] is None:
        assert status == 1
    else:
        assert hashlib.sha256((tmp_path / "disk").read_bytes()).hexdigest() == entry["sha256"]

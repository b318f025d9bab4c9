"""The corpus in fixtures/hostile is made anew for each test; its index is what is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fixtures.hostile.make import INDEX, index, write


def test_the_index_says_what_the_corpus_is() -> None:
    """If not: python fixtures/hostile/make.py --index"""
    kept = json.loads(INDEX.read_text())
    assert kept == index()
    assert len(kept) >= 150
    assert {entry["verdict"] for entry in kept.values()} == {
        *("safe", "refers-to-host", "refers-to-network", "bomb", "malformed", "unknown")
    }


def test_the_script_writes_the_images_of_the_index(tmp_path: Path) -> None:
    written = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in write(tmp_path / "made")}
    assert written == {name: entry["sha256"] for name, entry in index().items()}

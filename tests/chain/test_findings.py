"""The table of finding codes is what scripts rely on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import imgtool.chain
from imgtool.chain.findings import KINDS, finding

SOURCES = [path.read_text() for path in Path(str(imgtool.chain.__file__)).parent.glob("*.py")]


def test_every_code_of_the_table_is_given_somewhere() -> None:
    given = set()
    for source in SOURCES:
        given |= set(re.findall(r'finding\(\s*"([a-z-]+)"', source))
        for pair in re.findall(r'code = "([a-z-]+)" if .* else "([a-z-]+)"', source):
            given |= set(pair)
    assert given == set(KINDS)


def test_a_finding_has_the_severity_of_its_code() -> None:
    assert finding("cycle", "a → a").severity == "error"
    assert finding("duplicate-name", "a is b").severity == "warning"


def test_a_code_that_is_not_in_the_table_cannot_be_given() -> None:
    with pytest.raises(KeyError):
        finding("invented", "x")

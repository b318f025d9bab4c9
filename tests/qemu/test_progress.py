import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.qemu.progress import ProgressParser

OUTPUT = b"    (0.00/100%)\r    (1.50/100%)\r    (33.33/100%)\r    (100.00/100%)\r\n"


@given(st.lists(st.integers(0, len(OUTPUT))))
def test_reports_cut_anywhere_are_read_whole(cuts: list[int]) -> None:
    parser = ProgressParser()
    edges = [0, *sorted(cuts), len(OUTPUT)]
    found = [n for start, end in itertools.pairwise(edges) for n in parser.feed(OUTPUT[start:end])]
    assert found == [0.0, 1.5, 33.33, 100.0]
    assert parser.text == ""


def test_a_report_is_handed_on_as_soon_as_it_is_complete() -> None:
    parser = ProgressParser()
    assert parser.feed(b"    (12.3") == []
    assert parser.feed(b"4/100") == []
    assert parser.feed(b"%)") == [12.34]
    assert parser.feed(b"\r") == []


def test_a_number_split_between_its_digits_is_one_number() -> None:
    parser = ProgressParser()
    assert parser.feed(b"(9") + parser.feed(b"9.99/100%)\r") == [99.99]


@given(st.lists(st.integers(0, 200)))
def test_other_text_is_kept(cuts: list[int]) -> None:
    output = (
        b"    (50.00/100%)\rWarning: Image size mismatch!\n    (100.00/100%)\r\nContent mismatch at offset 4096!\n"
    )
    parser = ProgressParser()
    edges = [0, *sorted(min(cut, len(output)) for cut in cuts), len(output)]
    found = [n for start, end in itertools.pairwise(edges) for n in parser.feed(output[start:end])]
    assert found == [50.0, 100.0]
    assert parser.text == "Warning: Image size mismatch!\nContent mismatch at offset 4096!"


@pytest.mark.parametrize("noise", [b"(12/100)", b"12.34/100%", b"(x/100%)", b"(/100%)"])
def test_what_only_looks_like_a_report_is_none(noise: bytes) -> None:
    assert ProgressParser().feed(noise) == []

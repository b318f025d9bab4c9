import pytest

from imgtool.errors import UsageError
from imgtool.sizes import bytes_of, format_size, parse_resize, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("1k", 1024),
        ("1K", 1024),
        ("1.5G", 3 << 29),
        (".5M", 1 << 19),
        ("10G", 10 << 30),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
        ("0x200", 512),
        (" 1M ", 1 << 20),
    ],
)
def test_a_size_is_read_as_qemu_reads_it(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "1Q", "-1", "1.5", "1,5G", "1 G", "10GB", "8E", "0x", "١"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_a_size_is_bytes_or_text() -> None:
    assert [bytes_of(size) for size in (0, 512, "512", "1.5G")] == [0, 512, 512, 3 << 29]


@pytest.mark.parametrize("size", [-1, "-1", "+1", "", "ten"])
def test_what_says_no_number_of_bytes_is_a_usage_error(size: int | str) -> None:
    with pytest.raises(UsageError):
        bytes_of(size)


@pytest.mark.parametrize(("text", "size"), [("20G", 20 << 30), ("+512M", (10 << 30) + (512 << 20)), ("-1G", 9 << 30)])
def test_a_resize_may_be_relative(text: str, size: int) -> None:
    assert parse_resize(text, 10 << 30) == size


def test_a_resize_below_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        parse_resize("-2G", 1 << 30)


@pytest.mark.parametrize("size", [0, 1, 512, 1000, 1024, 1536 << 20, 10 << 30, 2**63 - 1])
def test_a_formatted_size_reads_back_exactly(size: int) -> None:
    assert parse_size(format_size(size)) == size


def test_sizes_are_written_in_the_largest_whole_unit() -> None:
    assert [format_size(n) for n in (10 << 30, 1536 << 20, 1000, 0)] == ["10G", "1536M", "1000", "0"]

import pytest

from imgtool.qemu.img_help import formats, option_help
from imgtool.qemu.programs import Programs

pytestmark = pytest.mark.matrix


def test_the_formats_are_read_from_the_help_of_every_version() -> None:
    found = formats(Programs())
    assert {"raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "luks", "file", "nbd"} <= set(found)
    assert all(name and name.strip() == name for name in found)


def test_each_option_has_its_line() -> None:
    options = option_help(Programs(), "qcow2")
    assert {"backing_file", "cluster_size", "compat", "preallocation"} <= set(options)
    assert options["cluster_size"].startswith("cluster_size=<")


def test_options_that_can_be_amended_are_fewer() -> None:
    amended = option_help(Programs(), "qcow2", amend=True)
    assert "compat" in amended
    assert len(amended) < len(option_help(Programs(), "qcow2"))


def test_a_format_that_nobody_knows_has_no_options() -> None:
    assert option_help(Programs(), "no-such-format") == {}


def test_the_options_of_files_count_as_the_formats_own() -> None:
    """A raw image has them alone."""
    assert {"size", "preallocation"} <= set(option_help(Programs(), "raw"))

"""What the image commands share: help, refusals, and what people see."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import click
import pytest

from imgtool.cli.images import Opened, check_options, nearest_name
from imgtool.cli.main import cli
from imgtool.cli.options import option_map
from imgtool.cli.render import date, fields, shell, short_size, size, table
from imgtool.cli.schema import DOCUMENTS
from imgtool.errors import UsageError
from imgtool.qemu.img_argv import ImageOpts

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool

VERBS = (
    *("create", "info", "check", "convert", "compare", "resize", "snapshot", "map", "measure", "amend", "bitmap"),
    *("commit", "rebase"),
)
CHANGING = ("create", "convert", "resize", "snapshot", "amend", "bitmap", "commit", "rebase", "check")


def command(verb: str) -> click.Command:
    found = cli.get_command(click.Context(cli), verb)
    assert found is not None
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(verb: str) -> None:
    found = command(verb)
    text = found.get_help(click.Context(found, info_name=f"imgtool {verb}"))
    assert f"  imgtool {verb} " in text
    assert "Examples:" in text
    assert "--output [human|json]" in text
    assert ("--dry-run" in text) == (verb in CHANGING or verb == "compare")
    unexplained = [option.name for option in found.params if isinstance(option, click.Option) and not option.help]
    assert unexplained in ([], ["_progress"])


QEMU_IMG = {
    "create": "qfbFuo",
    "info": "fU",
    "check": "qfrTU",
    "convert": "UCcpqnftTOBFolSrmW",
    "compare": "fFTpqsU",
    "resize": "fq",
    "snapshot": "Uqlacd",
    "map": "fU",
    "measure": "OoflU",
    "amend": "pqfto",
    "bitmap": "bFgf",
    "commit": "qftbrdp",
    "rebase": "UqftTpubF",
}
"""The letters that qemu-img 7.2 has for each verb, less -h."""


@pytest.mark.parametrize("verb", VERBS)
def test_qemu_imgs_letters_are_all_there(verb: str) -> None:
    known = {word for param in command(verb).params for word in param.opts}
    assert {f"-{letter}" for letter in QEMU_IMG[verb]} <= known


def test_the_documents_have_schemas(imgtool: Imgtool) -> None:
    assert set(VERBS) | {"plan", "snapshots"} <= set(DOCUMENTS)
    schema = imgtool("schema", "info").document
    info = schema["$defs"]["ImageInfo"]
    assert "virtual-size" in info["properties"]
    assert "*" not in info["properties"]
    assert imgtool("schema", "map").document["type"] == "array"


def test_sizes_and_dates() -> None:
    assert [size(count) for count in (0, 1, 512, 1024, 1536, 10 << 30)] == [
        *("0 bytes", "1 byte", "512 bytes", "1 KiB (1024 bytes)", "1.5 KiB (1536 bytes)"),
        "10 GiB (10737418240 bytes)",
    ]
    assert short_size((1 << 40) + (1 << 39)) == "1.5 TiB"
    assert date(1 << 62).endswith(" s after 1970")


def test_values_are_aligned_and_colour_takes_no_room() -> None:
    assert list(fields([("a", "1"), ("long key", "2")])) == ["a:        1", "long key: 2"]
    rows = [("1", click.style("x", fg="red"), "end"), ("22", "日本", "end")]
    assert [click.unstyle(line) for line in table(("N", "NAME", "LAST"), rows, right=(0,))] == [
        *(" N  NAME  LAST", " 1  x     end", "22  日本  end")
    ]


@pytest.mark.parametrize(
    "name", ["plain", "it's", "a b", "two\nlines", "\x1b[31m'\\", "no utf-8 \udcff", "-x", "日本"]
)
def test_a_command_that_is_shown_can_be_pasted(name: str) -> None:
    line = shell(["printf", "%s.", name])
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == f"{name}.".encode(errors="surrogateescape")


def test_options_given_twice_are_one_list() -> None:
    assert option_map(("a=1,b", "a=2,c=x,,y")) == {"a": "2", "b": "on", "c": "x,y"}


def test_the_nearest_name_is_said_first() -> None:
    assert nearest_name("on", ["two", "one"], none="") == "did you mean 'one'? there are two, one"
    assert nearest_name("on", [], none="there are none") == "there are none"


def test_what_an_error_calls_an_image() -> None:
    assert Opened("/x/a\nb", "a\\nb", "raw").place == "/x/a\\nb"
    assert Opened(ImageOpts("driver=raw"), "driver=raw", None).place == "driver=raw"


@pytest.mark.matrix
def test_an_unknown_option_names_the_nearest() -> None:
    from imgtool.cli.context import Context

    with pytest.raises(UsageError, match="qcow2 images have no option 'cluster'") as caught:
        check_options(Context(), "qcow2", ["size", "cluster"])
    assert caught.value.hint is not None
    assert "cluster_size" in caught.value.hint

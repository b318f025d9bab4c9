"""`imgtool chain show`, as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def family(images: Images) -> None:
    images.base("base.qcow2", "1G")
    images.overlay("web.qcow2", "base.qcow2")
    images.overlay("db.qcow2", "base.qcow2")
    images.overlay("web-test.qcow2", "web.qcow2")
    images.qemu_img("snapshot", "-c", "before\x1b[31m", images / "web.qcow2")


def test_a_directory_is_a_forest(images: Images, imgtool: Imgtool) -> None:
    family(images)
    images.overlay("orphan.qcow2", "gone.qcow2", size="2M")
    with images.opened(images / "db.qcow2"):
        done = imgtool("chain", "show", ".", cwd=images.directory)
    assert done.status == 0
    assert done.stderr == ""
    shape = [line.partition("qcow2 ")[0] + "qcow2" for line in done.stdout.splitlines()]
    assert shape[:4] == ["base.qcow2", "├─ db.qcow2", "└─ web.qcow2", "   └─ web-test.qcow2"]
    base, db, web, *_ = done.stdout.splitlines()
    assert base.split()[1:4] == ["qcow2", "1", "GiB"]
    assert base.endswith("in use for reading")
    assert db.endswith("in use for writing")
    assert web.endswith("1 snapshot: before\\x1b[31m")
    assert "error: the backing file" in done.stdout
    assert "[missing-parent]" in done.stdout


def test_the_image_asked_for_is_marked(images: Images, imgtool: Imgtool) -> None:
    family(images)
    done = imgtool("chain", "show", "web.qcow2", cwd=images.directory)
    marked = [line for line in done.stdout.splitlines() if "← asked for" in line]
    assert [line.split()[1] for line in marked] == ["web.qcow2"]
    assert "1 other image on it, not shown" in done.stdout
    assert "db.qcow2" not in done.stdout


def test_colour_is_for_those_who_want_it(images: Images, imgtool: Imgtool) -> None:
    family(images)
    plain = imgtool("chain", "show", "web.qcow2", cwd=images.directory)
    colored = imgtool("--color", "always", "chain", "show", "web.qcow2", cwd=images.directory)
    assert "\x1b" not in plain.stdout
    assert "\x1b[1mweb.qcow2\x1b[0m" in colored.stdout


def test_a_terminal_without_box_drawing_gets_ascii(images: Images, imgtool: Imgtool) -> None:
    images.base("bäse.qcow2")
    images.overlay("top.qcow2", "bäse.qcow2")
    done = imgtool("chain", "show", ".", cwd=images.directory, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.status == 0
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["b\\xe4se.qcow2", "`- top.qcow2"]


def test_json_is_one_document_of_the_documented_shape(images: Images, imgtool: Imgtool) -> None:
    family(images)
    done = imgtool("chain", "show", images / "web.qcow2", "--output", "json")
    assert done.status == 0
    assert set(done.document) == {"images", "roots", "findings"}
    assert done.document["roots"] == [str(images / "base.qcow2")]
    (web,) = [image for image in done.document["images"] if image["path"] == str(images / "web.qcow2")]
    assert web["parent"] == str(images / "base.qcow2")
    assert web["children"] == [str(images / "web-test.qcow2")]
    assert web["depth"] == 1
    assert web["virtual-size"] == 1 << 30
    assert web["in-use"] is None
    assert [snapshot["name"] for snapshot in web["snapshots"]] == ["before\x1b[31m"]


def test_json_keeps_names_that_are_not_utf8(images: Images, imgtool: Imgtool) -> None:
    images.base("b\udcff.qcow2")
    done = imgtool("chain", "show", images.directory, "--output", "json")
    (image,) = json.loads(done.stdout)["images"]
    assert image["path"] == str(images / "b\udcff.qcow2")


@pytest.mark.parametrize(("output", "first"), [("dot", "digraph chain {"), ("mermaid", "flowchart BT")])
def test_pictures_for_other_programs(images: Images, imgtool: Imgtool, output: str, first: str) -> None:
    family(images)
    done = imgtool("chain", "show", images.directory, "--output", output)
    assert done.status == 0
    lines = done.stdout.splitlines()
    assert lines[0] == first
    assert sum(" -> n" in line or " --> n" in line for line in lines) == 3


def test_an_image_that_is_nowhere_is_an_error_with_a_hint(images: Images, imgtool: Imgtool) -> None:
    done = imgtool("chain", "show", images / "gone.qcow2")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"imgtool: error: {images / 'gone.qcow2'} does not exist",
        "hint: no image refers to it either",
    ]
    done = imgtool("chain", "show", images / "gone.qcow2", "--output", "json")
    assert done.error["code"] == "image-not-found"


def test_a_missing_base_shows_its_orphans(images: Images, imgtool: Imgtool) -> None:
    images.overlay("orphan.qcow2", "gone.qcow2", size="2M")
    done = imgtool("chain", "show", images / "gone.qcow2")
    assert done.status == 0
    assert "orphan.qcow2" in done.stdout


def test_a_directory_without_images_is_no_error(images: Images, imgtool: Imgtool) -> None:
    done = imgtool("chain", "show", images.directory)
    assert (done.status, done.stdout) == (0, "")
    assert done.stderr == "imgtool: note: no images there\n"
    empty = imgtool("chain", "show", images.directory, "--output", "json").document
    assert empty == {"images": [], "roots": [], "findings": []}


def test_without_an_image_it_is_used_wrongly(imgtool: Imgtool) -> None:
    assert imgtool("chain", "show").status == 2
    assert imgtool("chain", "show", "-f", "gif", "disk").status == 2


def test_a_cycle_is_shown_and_ends(images: Images, imgtool: Imgtool) -> None:
    images.overlay("one.qcow2", "two.qcow2", size="1M")
    images.overlay("two.qcow2", "one.qcow2", size="1M")
    done = imgtool("chain", "show", "one.qcow2", cwd=images.directory)
    assert done.status == 0
    assert done.stdout.count("[cycle]") == 2
    assert "(shown above)" in done.stdout


def test_the_schema_describes_the_document(imgtool: Imgtool) -> None:
    schema = imgtool("schema", "chain").document
    assert "virtual-size" in schema["$defs"]["Image"]["properties"]

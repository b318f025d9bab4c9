"""`imgtool chain layers` and `chain diff`, as they are typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chain.test_layers import MIB, chain

if TYPE_CHECKING:
    from tests.cli.conftest import Imgtool
    from tests.conftest import Images

pytestmark = pytest.mark.matrix


def test_layers_for_people_and_programs(images: Images, imgtool: Imgtool) -> None:
    top = chain(images)
    done = imgtool("chain", "layers", "top.qcow2", cwd=images.directory, COLUMNS="80")
    assert done.status == 0
    lines = done.stdout.splitlines()
    assert len(lines[0]) == 80
    assert set(lines[0]) == set("[abc.]")
    assert lines[2].split()[:3] == ["a", "top.qcow2", "qcow2"]
    assert lines[-1].startswith("commit would write 576 KiB")
    document = imgtool("chain", "layers", top, "--output", "json").document
    assert [layer["data"] for layer in document["layers"]] == [9 * 65536, 3 * MIB // 2, 3 * MIB]
    assert imgtool("chain", "layers", top, "--output", "svg").stdout.startswith("<svg")


def test_diff_for_people_and_programs(images: Images, imgtool: Imgtool) -> None:
    chain(images)
    done = imgtool("chain", "diff", "base.qcow2", "top.qcow2", cwd=images.directory)
    assert done.status == 0
    assert done.stdout.startswith(
        "2.1 MiB (2162688 bytes) in 33 clusters of 64 KiB (65536 bytes) were written since base"
    )
    assert (
        imgtool("chain", "diff", "top.qcow2", "top.qcow2", cwd=images.directory).stdout == "no bytes were written\n"
    )
    found = imgtool("chain", "diff", "--exact", "base.qcow2", "top.qcow2", "--output", "json", cwd=images.directory)
    assert found.document["exact"]
    assert found.document["bytes"] == 2 * MIB + 65536


def test_a_disk_that_only_grew_was_not_written(images: Images, imgtool: Imgtool) -> None:
    images.base("base.qcow2", "1M")
    images.overlay("top.qcow2", "base.qcow2")
    images.qemu_img("resize", "-q", "-f", "qcow2", "top.qcow2", "3M")
    words = ["chain", "diff", "base.qcow2", "top.qcow2"]
    said = imgtool(*words, cwd=images.directory).stdout.splitlines()[1]
    assert said.startswith("2 MiB (2097152 bytes) in 32 clusters of 64 KiB (65536 bytes)")
    assert said.endswith(") lie behind the end of the smaller disk")
    images.run_io(images / "top.qcow2", "write -P 1 0 64k")
    said = imgtool(*words, cwd=images.directory).stdout.splitlines()[1]
    assert said.endswith(" were written since base.qcow2, or lie behind the end of the smaller disk")


def test_errors_and_schemas(images: Images, imgtool: Imgtool) -> None:
    assert imgtool("chain", "layers", images / "gone.qcow2").status == 1
    assert imgtool("chain", "diff", images / "gone.qcow2", images / "gone.qcow2").status == 1
    assert imgtool("chain", "diff", images.base("a.qcow2")).status == 2
    for name in ("chain-layers", "chain-diff"):
        assert imgtool("schema", name).status == 0

from __future__ import annotations

from tests.cli.conftest import Imgtool


def test_the_report_names_each_thing_and_its_fix(imgtool: Imgtool) -> None:
    done = imgtool("doctor")
    assert done.status == 0
    lines = done.stdout.splitlines()
    assert any(line.startswith("ok       tcg ") for line in lines)
    missing = [line for line in lines if line.startswith("missing")]
    assert done.stdout.count("fix: ") == len(missing)


def test_what_is_needed_and_there_is_status_0_and_what_is_not_is_3(imgtool: Imgtool) -> None:
    assert imgtool("doctor", "--need", "tcg,user-network").status == 0
    done = imgtool("doctor", "--need", "tcg", "--need", "uefi", "--output", "json", XDG_CONFIG_HOME="/nonexistent")
    names = [check["name"] for check in done.document]
    assert names == ["tcg", "uefi"]
    gone = imgtool("doctor", "--need", "qemu-img", IMGTOOL_QEMU_IMG="/nonexistent/qemu-img")
    assert gone.status == 3
    assert gone.stdout.startswith("missing  qemu-img")


def test_a_need_that_no_check_knows_is_a_usage_error(imgtool: Imgtool) -> None:
    done = imgtool("doctor", "--need", "kvmm")
    assert done.status == 2
    assert "--need knows no 'kvmm'" in done.stderr
    assert "kvm, tcg" in done.stderr

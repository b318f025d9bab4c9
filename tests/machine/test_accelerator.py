from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from imgtool.errors import CommandTimeout, MachineError
from imgtool.machine.accelerator import LEAST_LIMIT, Choice, Host, choose, closed_device, proof_argv, prove, this_host
from imgtool.machine.proof_sector import EXIT_STATUS, boot_sector
from imgtool.qemu.capabilities import Capabilities, capabilities
from imgtool.qemu.process import NO_LIMITS, Completed, Limits
from imgtool.qemu.programs import Programs

SLOW = "slow"


@pytest.fixture(scope="module")
def program() -> str:
    return Programs().find("qemu-system-x86_64")


@pytest.fixture(scope="module")
def asked(program: str, tmp_path_factory: pytest.TempPathFactory) -> Capabilities:
    return capabilities(program, cache_dir=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def with_kvm(asked: Capabilities) -> Capabilities:
    """A QEMU that has kvm, whatever this one has."""
    return msgspec.structs.replace(asked, accelerators=("kvm", "tcg"))


OPENS = Host(platform="linux", kvm="/dev/null", boot="boot one")
"""A host whose KVM device opens."""


class Outcomes:
    """A Runner that stands for a host: what the proof does under each (accelerator, cpu)."""

    def __init__(self, outcomes: dict[tuple[str, str | None], int | str]) -> None:
        self.outcomes = outcomes
        self.limits: dict[tuple[str, str | None], float | None] = {}

    def __call__(
        self,
        argv: Sequence[str],
        *,
        limits: Limits = NO_LIMITS,
        on_stdout: Callable[[bytes], None] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: str | None = None,
        meanwhile: Callable[[], object] | None = None,
    ) -> Completed:
        words = list(argv)
        cpu = words[words.index("-cpu") + 1] if "-cpu" in words else None
        asked = (words[words.index("-accel") + 1], cpu)
        self.limits[asked] = limits.seconds
        outcome = self.outcomes[asked]
        if outcome == SLOW:
            raise CommandTimeout("stopped", argv=argv, status=None)
        assert isinstance(outcome, int)
        return Completed(tuple(argv), outcome, b"", b"error: failed to set MSR 0x10a\nmore" if outcome < 0 else b"")


def test_the_proof_is_a_plain_pc_with_the_sector_as_its_disk() -> None:
    assert proof_argv("/usr/bin/qemu", "kvm", "host", "/t/a,b") == [
        "/usr/bin/qemu",
        "-machine",
        "pc",
        "-accel",
        "kvm",
        "-cpu",
        "host",
        "-m",
        "16",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-blockdev",
        '{"driver":"raw","node-name":"sector","file":{"driver":"file","filename":"/t/a,b"}}',
        "-device",
        "ide-hd,drive=sector,bootindex=0",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=4",
    ]


def test_the_sector_is_a_boot_sector_with_the_jump_into_long_mode_at_its_place() -> None:
    sector = boot_sector()
    assert len(sector) == 512
    assert sector[510:] == b"\x55\xaa"
    jump = sector.index(b"\xea")
    target = int.from_bytes(sector[jump + 1 : jump + 3], "little") - 0x7C00
    assert target == jump + 5
    gdtr = int.from_bytes(sector[sector.index(b"\x0f\x01\x16") + 3 :][:2], "little") - 0x7C00
    gdt = int.from_bytes(sector[gdtr + 2 : gdtr + 6], "little") - 0x7C00
    assert sector[gdt : gdt + 8] == bytes(8)
    assert gdt + 16 == gdtr


@pytest.mark.matrix
def test_the_sector_runs_under_tcg_and_reports(program: str) -> None:
    proof = prove(program, "tcg", None, seconds=60)
    assert proof.works
    assert proof.reason.startswith("a 64-bit boot sector ran in")
    assert proof.seconds is not None


@pytest.mark.matrix
def test_a_cpu_without_64_bit_mode_is_found_out(program: str) -> None:
    assert not prove(program, "tcg", "qemu32", seconds=1.0).works


@pytest.mark.matrix
def test_an_accelerator_that_this_qemu_lacks_is_a_reason_and_no_exception(program: str) -> None:
    proof = prove(program, "hvf", None, seconds=60)
    assert not proof.works
    assert "hvf" in proof.reason


def test_auto_on_this_very_host_names_one_that_works_and_says_why(asked: Capabilities, tmp_path: Path) -> None:
    choice = choose(asked, cache_dir=str(tmp_path))
    cpu = "host" if choice.host_cpu else None
    assert prove(asked.program, choice.accelerator, cpu, seconds=60).works
    assert "kvm: " in choice.why


def test_proven_kvm_is_taken_with_the_host_cpu(with_kvm: Capabilities, tmp_path: Path) -> None:
    outcomes = Outcomes({("tcg", None): EXIT_STATUS, ("kvm", "host"): EXIT_STATUS})
    choice = choose(with_kvm, cache_dir=str(tmp_path), runner=outcomes, host=OPENS)
    assert (choice.accelerator, choice.host_cpu) == ("kvm", True)
    assert outcomes.limits["kvm", "host"] == LEAST_LIMIT


def test_a_crash_of_cpu_host_alone_leaves_kvm_without_it(with_kvm: Capabilities, tmp_path: Path) -> None:
    outcomes = Outcomes({("tcg", None): EXIT_STATUS, ("kvm", "host"): -6, ("kvm", None): EXIT_STATUS})
    choice = choose(with_kvm, cache_dir=str(tmp_path), runner=outcomes, host=OPENS)
    assert (choice.accelerator, choice.host_cpu) == ("kvm", False)
    assert "but not as -cpu host" in choice.why


def test_slow_nested_kvm_gives_tcg_and_both_reasons(with_kvm: Capabilities, tmp_path: Path) -> None:
    outcomes = Outcomes({("tcg", None): EXIT_STATUS, ("kvm", "host"): -6, ("kvm", None): SLOW})
    choice = choose(with_kvm, cache_dir=str(tmp_path), runner=outcomes, host=OPENS)
    assert (choice.accelerator, choice.host_cpu) == ("tcg", False)
    assert "kvm: a 64-bit boot sector ran for over 2.0 s in it" in choice.why
    assert "gave up (SIGABRT): error: failed to set MSR 0x10a;" in choice.why


def test_a_guest_that_ends_otherwise_is_no_proof(with_kvm: Capabilities, tmp_path: Path) -> None:
    outcomes = Outcomes({("tcg", None): EXIT_STATUS, ("kvm", "host"): 0, ("kvm", None): 1})
    assert choose(with_kvm, cache_dir=str(tmp_path), runner=outcomes, host=OPENS).accelerator == "tcg"


def test_without_tcg_and_without_proof_there_is_nothing_to_choose(with_kvm: Capabilities, tmp_path: Path) -> None:
    only_kvm = msgspec.structs.replace(with_kvm, accelerators=("kvm",))
    outcomes = Outcomes({("kvm", "host"): -6, ("kvm", None): 1})
    with pytest.raises(MachineError, match="no accelerator works here: kvm: "):
        choose(only_kvm, cache_dir=str(tmp_path), runner=outcomes, host=OPENS)


def test_a_proof_is_kept_until_the_host_boots_again(with_kvm: Capabilities, tmp_path: Path) -> None:
    working = Outcomes({("tcg", None): EXIT_STATUS, ("kvm", "host"): EXIT_STATUS})
    broken = Outcomes({("tcg", None): EXIT_STATUS, ("kvm", "host"): 1, ("kvm", None): 1})

    def chosen(outcomes: Outcomes, boot: str | None) -> str:
        host = msgspec.structs.replace(OPENS, boot=boot)
        return choose(with_kvm, cache_dir=str(tmp_path), runner=outcomes, host=host).accelerator

    assert chosen(working, "boot one") == "kvm"
    assert chosen(broken, "boot one") == "kvm"
    assert chosen(broken, "boot two") == "tcg"
    assert chosen(working, None) == "kvm"
    assert chosen(broken, None) == "tcg"


def test_this_host_says_which_boot_this_is() -> None:
    assert this_host().boot == this_host().boot != ""


def test_what_shows_without_a_proof_runs_nothing(asked: Capabilities, with_kvm: Capabilities, tmp_path: Path) -> None:
    def choice(capable: Capabilities, host: Host = OPENS) -> Choice:
        return choose(capable, cache_dir=str(tmp_path), runner=Outcomes({}), host=host)

    assert "built without it" in choice(msgspec.structs.replace(asked, accelerators=("tcg",))).why
    assert "no proof for aarch64" in choice(msgspec.structs.replace(with_kvm, target="aarch64")).why
    missing = msgspec.structs.replace(OPENS, kvm=str(tmp_path / "kvm"))
    assert choice(with_kvm, missing).why == f"kvm: {tmp_path}/kvm: No such file or directory"
    elsewhere = msgspec.structs.replace(OPENS, platform="plan9")
    assert choice(with_kvm, elsewhere) == Choice(accelerator="tcg", host_cpu=False, proofs=())


def test_a_machine_that_was_to_have_kvm_alone_is_told_where_that_does_not_open(tmp_path: Path) -> None:
    kvm = tmp_path / "kvm"
    assert "imgtool doctor" in (closed_device("kvm", kvm=str(kvm)) or "")
    assert closed_device("tcg", kvm=str(kvm)) is None
    kvm.touch()
    assert closed_device("kvm", kvm=str(kvm)) is None

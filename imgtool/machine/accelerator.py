"""Choosing an accelerator by proof: guest code has to run under it, in time.

That `/dev/kvm` opens proves nothing: under slow nested virtualisation a boot sector takes seconds there, `-cpu host`
makes QEMU abort, and Linux never prints a line. A crash of the proof is an answer like any other.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import msgspec

from imgtool.errors import CommandError, CommandTimeout, MachineError
from imgtool.machine.process import boot_identity
from imgtool.machine.proof_sector import EXIT_STATUS, REPORT_PORT, boot_sector
from imgtool.qemu.capabilities import Capabilities
from imgtool.qemu.learned import place
from imgtool.qemu.process import Limits, Runner, failure, run

_CACHE_FORMAT = 2

LEAST_LIMIT = 2.0
"""Seconds an accelerator always gets."""

_TCG_LIMIT = 30.0
_TIMES_TCG = 4
"""What needs this many times as long as emulation accelerates nothing. On a busy host both take longer, so that the
limit grows with it."""

_HOST_ACCELERATORS = {"linux": "kvm", "darwin": "hvf", "win32": "whpx"}


class Proof(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """What came of running guest code under an accelerator."""

    accelerator: str
    works: bool
    reason: str
    """A sentence's second half, after `kvm: `."""
    seconds: float | None = None
    host_cpu: bool = False
    """Whether `-cpu host` works under it, too."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """The accelerator that `auto` stands for here."""

    accelerator: str
    host_cpu: bool
    proofs: tuple[Proof, ...]

    @property
    def why(self) -> str:
        return "; ".join(f"{proof.accelerator}: {proof.reason}" for proof in self.proofs)


class Host(msgspec.Struct, frozen=True):
    """What of the host decides, apart from the proof."""

    platform: str
    """As in `sys.platform`."""
    kvm: str
    """The device KVM is reached by."""
    boot: str | None
    """Changes whenever the host boots; None where nothing says so, and proofs are then not kept."""


def this_host() -> Host:
    return Host(sys.platform, "/dev/kvm", boot_identity())


def proof_argv(program: str, accelerator: str, cpu: str | None, sector: str) -> list[str]:
    """A PC that boots the image `sector` (a path msgspec can encode: made by us) and ends with EXIT_STATUS."""
    disk = {"driver": "raw", "node-name": "sector", "file": {"driver": "file", "filename": sector}}
    return [
        program,
        *("-machine", "pc"),
        *("-accel", accelerator),
        *(("-cpu", cpu) if cpu else ()),
        *("-m", "16"),
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        *("-blockdev", msgspec.json.encode(disk).decode()),
        *("-device", "ide-hd,drive=sector,bootindex=0"),
        *("-device", f"isa-debug-exit,iobase={REPORT_PORT:#x},iosize=4"),
    ]


def prove(program: str, accelerator: str, cpu: str | None, *, seconds: float, runner: Runner = run) -> Proof:
    """Runs the boot sector under `accelerator`. Never raises for what QEMU does: a failure is a proof, too."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="imgtool-proof-") as folder:
        sector = os.path.join(folder, "sector.img")
        with open(sector, "wb") as file:
            file.write(boot_sector())
        argv = proof_argv(program, accelerator, cpu, sector)
        begun = time.monotonic()
        try:
            done = runner(argv, limits=Limits(seconds=seconds))
        except CommandTimeout:
            return Proof(
                accelerator=accelerator,
                works=False,
                reason=f"a 64-bit boot sector ran for over {seconds:.1f} s in it",
            )
        except CommandError as error:
            return Proof(accelerator=accelerator, works=False, reason=error.message)
        took = round(time.monotonic() - begun, 3)
    if done.status != EXIT_STATUS:
        return Proof(accelerator=accelerator, works=False, reason=_first_line(failure(done).message), seconds=took)
    return Proof(
        accelerator=accelerator, works=True, reason=f"a 64-bit boot sector ran in {took:.1f} s", seconds=took
    )


def choose(
    capabilities: Capabilities, *, cache_dir: str | None = None, runner: Runner = run, host: Host | None = None
) -> Choice:
    """What `--accel auto` means for this QEMU on this host: the host's accelerator if proven, else tcg.

    Kept on disk until the host boots again or QEMU changes; `cache_dir` None is the user's cache folder.
    """
    host = host or this_host()
    obstacle, candidate = _obstacle(capabilities, host)
    if obstacle is not None or candidate is None:
        proofs = () if obstacle is None else (obstacle,)
        return Choice(accelerator="tcg", host_cpu=False, proofs=proofs)
    if host.boot is None:
        return _prove_all(capabilities, candidate, runner)
    program = capabilities.program
    kept = place("accelerator", program, format=_CACHE_FORMAT, when=host.boot, cache_dir=cache_dir)
    choice = kept.recall(Choice)
    if choice is None:
        choice = _prove_all(capabilities, candidate, runner)
        kept.keep(choice)
    return choice


def _prove_all(capabilities: Capabilities, candidate: str, runner: Runner) -> Choice:
    program = capabilities.program
    emulated: tuple[Proof, ...] = ()
    if "tcg" in capabilities.accelerators:
        emulated = (prove(program, "tcg", None, seconds=_TCG_LIMIT, runner=runner),)
    limit = max([LEAST_LIMIT, *(_TIMES_TCG * (proof.seconds or 0.0) for proof in emulated)])
    with_host_cpu = prove(program, candidate, "host", seconds=limit, runner=runner)
    if with_host_cpu.works:
        proof = msgspec.structs.replace(with_host_cpu, host_cpu=True)
    else:
        plain = prove(program, candidate, None, seconds=limit, runner=runner)
        if plain.works:
            proof = msgspec.structs.replace(plain, reason=f"{plain.reason}, but not as -cpu host")
        else:
            proof = msgspec.structs.replace(plain, reason=_both_reasons(plain.reason, with_host_cpu.reason))
    if proof.works:
        return Choice(accelerator=candidate, host_cpu=proof.host_cpu, proofs=(proof, *emulated))
    if not emulated:
        raise MachineError(f"no accelerator works here: {candidate}: {proof.reason}; this QEMU has no tcg")
    return Choice(accelerator="tcg", host_cpu=False, proofs=(proof, *emulated))


def closed_device(accelerator: str | None, *, kvm: str = "/dev/kvm") -> str | None:
    """What to do about a machine that was to have this accelerator and no other, where its device does not open."""
    if accelerator != "kvm" or os.access(kvm, os.R_OK | os.W_OK):
        return None
    return "`imgtool doctor` says why KVM is not to be had here; without --accel kvm the guest is emulated"


def _both_reasons(plain: str, with_host_cpu: str) -> str:
    return plain if plain == with_host_cpu else f"{plain}; with -cpu host: {with_host_cpu}"


def _obstacle(capabilities: Capabilities, host: Host) -> tuple[Proof | None, str | None]:
    """What shows without a proof: (why the host's accelerator is out of the question, its name)."""
    candidate = _HOST_ACCELERATORS.get(host.platform)
    if candidate is None:
        return None, None

    def no(reason: str) -> tuple[Proof, str]:
        return Proof(accelerator=candidate, works=False, reason=reason), candidate

    if candidate not in capabilities.accelerators:
        return no("this QEMU was built without it")
    if capabilities.target not in ("x86_64", "i386"):
        return no(f"there is no proof for {capabilities.target} guests; `--accel {candidate}` takes it unproven")
    if candidate == "kvm":
        try:
            os.close(os.open(host.kvm, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return no(f"{host.kvm}: {error.strerror}")
    return None, candidate


def _first_line(text: str) -> str:
    lines: Sequence[str] = text.splitlines() or [text]
    return lines[0]

"""The errors imgtool raises, and nothing else it raises on purpose.

    ImgtoolError                    exit 1
    ├── UsageError                  exit 2: the request itself makes no sense
    ├── ConfigError                 exit 2: a profile, recipe or setting is wrong
    ├── RefusedError                a guard said no; `hint` names the option that overrides it
    │   └── PolicyError             … an image refers to something the user has not allowed
    ├── ProgramError                a program is missing or unusable
    ├── CommandError                a program ran and failed
    │   ├── CommandTimeout          … it was stopped at its time limit
    │   └── CommandCrashed          … it died by a signal (SIGSEGV, SIGABRT, SIGKILL)
    ├── DecodeError                 a program answered something that is not what QAPI promises
    ├── ImageError                  an image cannot be used
    │   ├── ImageNotFoundError
    │   ├── ImageExistsError
    │   ├── ImageUnreadableError
    │   ├── ImageInUseError         another process holds QEMU's lock on it
    │   └── ImageFormatError        its bytes are not a valid image
    ├── ChainError                  a backing chain cannot be walked: cycle, missing parent, too deep
    ├── MachineError                a machine cannot be configured, started or reached
    │   ├── QmpUnreachable          … QEMU's monitor does not answer
    │   ├── QmpCommandError         … it refused a command
    │   ├── AgentUnavailable        … the guest agent does not answer
    │   ├── AgentError              … it refused a command
    │   │   └── NoSuchProgramError  … the guest has no such program; exit 127
    │   ├── NotReady                … the guest did not get as far as was waited for
    │   ├── NoWay                   … no address is known for ssh
    │   ├── ExecutorError           … a step of a build could not be done in the guest
    │   │   ├── GuestLost
    │   │   └── StepTimeout
    │   └── StepFailed              … a step was done, and failed
    ├── RegistryError               a registry could not be reached, or said no
    │   ├── RegistryAuthError
    │   ├── RegistryNotFoundError
    │   └── DigestError             … it sent other bytes than it should
    ├── DownloadError               a file on the web could not be fetched, or is not the one that was wanted
    └── ProofError                  a changed copy is not what it should be, and was thrown away

Those of machines, registries, the web and proofs are defined where they are raised, the others here.
Every error owns its exit status and a stable `code`; `imgtool.cli` is the one place that prints and exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ImgtoolError(Exception):
    """What happened (`message`), on which file (`path`), and what to do next (`hint`). Hints are in the words of the
    command line; `help(imgtool)` says how they are said in Python.

    Message and hint are text for people: whoever writes a name into them passes it through `names.printable`.
    `path` is the path itself.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = path
        self.status: int | None = None
        """The exit status of what ran and failed: a program's (-N when signal N ended it, None when it never
        started), or a build step's."""


class UsageError(ImgtoolError):
    """The request itself makes no sense."""

    code = "usage"
    exit_status = 2


class ConfigError(ImgtoolError):
    """A profile, recipe or setting is wrong."""

    code = "config"
    exit_status = 2


class RefusedError(ImgtoolError):
    """A guard said no; `hint` names the option that overrides it."""

    code = "refused"


class PolicyError(RefusedError):
    """An image wants something that the policy does not allow."""

    code = "policy"

    def __init__(self, message: str, *, wants: str, word: str | None, hint: str, path: str | None = None) -> None:
        super().__init__(message, hint=hint, path=path)
        self.wants = wants
        """The file, device, server or protocol that the image refers to."""
        self.word = word
        """What allows it after `--trust`; None when nothing does."""


class ProgramError(ImgtoolError):
    """A program is missing or unusable."""

    code = "program"


class CommandError(ImgtoolError):
    """A program ended with a status that is no answer. Keeps what is needed to look into it or run it again."""

    code = "command-failed"

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str],
        status: int | None,
        stdout: bytes = b"",
        stderr: bytes = b"",
        hint: str | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, path=path)
        self.argv = tuple(argv)
        self.status = status
        self.stdout = stdout
        self.stderr = stderr
        self.comment: str | None = None
        """What has to be known to run the program again; one line, of printable characters."""

    @property
    def command(self) -> str:
        """The command line, quoted so that it can be pasted into a shell; behind it the comment, as the shell's."""
        import shlex

        line = shlex.join(self.argv)
        return line if self.comment is None else f"{line}  # {self.comment}"


class CommandTimeout(CommandError):  # noqa: N818 - a time-out, as in TimeoutExpired
    """A program was stopped at its time limit."""

    code = "command-timeout"


class CommandCrashed(CommandError):  # noqa: N818
    """A program died by a signal."""

    code = "command-crashed"


class DecodeError(ImgtoolError):
    """A program answered something that is not what QAPI promises."""

    code = "decode"


class ImageError(ImgtoolError):
    """An image cannot be used."""

    code = "image"


class ImageNotFoundError(ImageError):
    """There is no such image."""

    code = "image-not-found"


class ImageExistsError(ImageError):
    """There is a file already where a new one was to be."""

    code = "image-exists"


class ImageUnreadableError(ImageError):
    """An image cannot be opened or read."""

    code = "image-unreadable"


class ImageInUseError(ImageError):
    """Another process holds QEMU's lock on an image."""

    code = "image-in-use"


class ImageFormatError(ImageError):
    """An image's bytes are not valid in its format."""

    code = "image-format"


class ChainError(ImgtoolError):
    """A backing chain cannot be walked: a cycle, a missing parent, or too deep."""

    code = "chain"


class MachineError(ImgtoolError):
    """A machine cannot be configured, started or reached."""

    code = "machine"

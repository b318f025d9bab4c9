"""The first lines of the `imgtool` command, before anything that takes time is imported."""

from __future__ import annotations

import signal


def main() -> None:
    """Until the command itself can answer a Ctrl-C, one ends the process, and Python says nothing about it."""
    unanswered = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if unanswered:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from imgtool.cli.main import main as command

    if unanswered:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


if __name__ == "__main__":
    main()

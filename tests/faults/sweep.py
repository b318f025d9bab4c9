"""Every fault at every point of every operation: `python -m tests.faults.sweep [OPERATION…]`, or `make faults`.

Prints a table of points tried and held, and exits with 1 when anything was lost. `--every N` tries each N-th point
only. The stores are made below TMPDIR; in memory (`TMPDIR=/dev/shm`) it is faster and counts the same calls.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.harness import KINDS, LostError, Shim, Trial
from tests.faults.operations import OPERATIONS


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sweep", description="Fault sweep over imgtool.")
    parser.add_argument("operations", nargs="*", help="names of operations; all when none is given")
    parser.add_argument("--every", type=int, default=1, help="try each N-th point only")
    parser.add_argument(
        "--keep-going", action="store_true", help="show everything that is lost, not the first of all"
    )
    given = parser.parse_args(arguments)
    chosen = [one for one in OPERATIONS if not given.operations or one.name in given.operations]
    if not chosen:
        parser.error("no such operation: " + ", ".join(given.operations))
    lost: list[str] = []
    total = [0, 0]
    print(f"| {'operation':<28} | points | {' | '.join(f'{kind:>7}' for kind in KINDS)} |  lost | seconds |")
    print(f"| {'-' * 28} | -----: | {' | '.join('------:' for _ in KINDS)} | ----: | ------: |")
    with tempfile.TemporaryDirectory(prefix="imgtool-faults-") as folder, Shim(Path(folder)) as shim:
        for number, operation in enumerate(chosen):
            start = time.monotonic()
            trial = Trial(operation, Path(folder) / str(number), shim)
            tried = dict.fromkeys(KINDS, 0)
            before = len(lost)
            for kind in KINDS:
                for point in range(1, trial.points + 1, given.every):
                    tried[kind] += 1
                    try:
                        trial.at(kind, point)
                    except LostError as error:
                        lost.append(str(error))
                        print(f"LOST: {error}", file=sys.stderr, flush=True)
                        if not given.keep_going:
                            return 1
            harm = len(lost) - before
            cells = " | ".join(f"{tried[kind]:>7}" for kind in KINDS)
            seconds = time.monotonic() - start
            print(f"| {operation.name:<28} | {trial.points:>6} | {cells} | {harm:>5} | {seconds:>7.0f} |", flush=True)
            total[0] += sum(tried.values())
            total[1] += harm
    print(f"\n{total[0]} faults tried, {total[0] - total[1]} held, {total[1]} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

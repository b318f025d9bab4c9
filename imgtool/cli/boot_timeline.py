"""`imgtool boot --timeline`: when firmware, kernel, init… were reached."""

from __future__ import annotations

import time

import click

from imgtool.machine.launch import Ended, Started, run
from imgtool.machine.plan import Plan
from imgtool.machine.serial import Follower, Timeline
from imgtool.qemu.programs import Programs


def run_with_timeline(plan: Plan, programs: Programs) -> Ended:
    """Runs the VM on the terminal, and prints the timeline once it has ended."""
    marks = Timeline()
    follower = Follower(plan.vm.serial_log)

    def look(started: Started) -> None:
        seconds = time.monotonic() - started.begun
        for line in follower.lines():
            marks.see(line.text, seconds)

    ended = run(plan, programs, while_running=look)
    echo_timeline(marks)
    return ended


def echo_timeline(marks: Timeline) -> None:
    """On stderr, a line for each stage."""
    for mark in marks.marks:
        click.echo(f"{mark.seconds:8.2f} s  {mark.stage}", err=True)

"""Causes of an end, from exit statuses and output."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CAUSES = {
    0: "done",
    2: "the command line is wrong",
    65: "data altered or torn",
    66: "input missing",
    69: "scheduler or node unavailable",
    70: "a training process hung",
    71: "energy budget exhausted",
    73: "another attempt holds the run",
    74: "disk full or refusing",
    75: "signalled to stop; finished work is saved",
    76: "the training diverged",
    77: "the gate is closed",
    78: "the configuration is wrong",
    126: "the command is not on this node",
    127: "the command is not on this node",
    137: "killed, by the out-of-memory killer or by a user",
    143: "ended by SIGTERM",
}
_ERROR = re.compile(r".* ERROR [A-Za-z]+: ")
_MEMORY = re.compile(r"oom.kill|out of memory|exceeded .*memory limit", re.IGNORECASE)
_SRUN = "srun: error: "
_MAX_CHARACTERS = 600


_ASIDE = re.compile(
    r"  (signed by |next: |no head of |\d+ gates? that cannot block |\S+ .*\(waived, "
    r"|(looser|changed): .*\(against .+\)$)"
)
"""A line of a closed gate that is not a reason."""
PROGRAM_DIFFERS = "the program differs"
"""Words of an error by which the first node, which compares the program, ends the preflight (`slurm/frozen.py`)."""


def cause_of(status: int) -> str:
    """Meaning of an exit status."""
    return _CAUSES.get(status) or (
        f"ended by signal {status - 128}" if status > 128 else f"failed with status {status}"
    )


def reason_in(lines: Sequence[str]) -> str:
    """The last error that our command reported; else the last line.

    Includes the indented lines below the error.
    """
    text, inside, last = "", False, ""
    for line in lines:
        if found := _ERROR.match(line):
            text, inside = line[found.end() :], True
        elif inside and line.startswith("  "):
            if not _ASIDE.match(line):
                text += f"; {line[2:]}"
        elif line.strip():
            inside, last = False, line
    return (text or last)[:_MAX_CHARACTERS]


def cause_in(lines: Sequence[str]) -> str:
    """The cause of a parallel step's end, '' if unknown."""
    if memory := [line for line in lines if _MEMORY.search(line)]:
        return f"out of memory: {memory[0]}"
    if any(_ERROR.match(line) for line in lines):
        return reason_in(lines)
    of_srun = [line.removeprefix(_SRUN) for line in lines if line.startswith(_SRUN)]
    # the first rank that was killed; ranks that only lost it exited with a status of their own
    for pattern in (r"task.*: (Killed|Aborted|Segm|Bus)|Node failure", r"task.*: (Exited|Terminated)"):
        if found := [line for line in of_srun if re.search(pattern, line)]:
            return found[0]
    return of_srun[-1] if of_srun else ""


def exited(lines: Sequence[str], *statuses: int) -> list[str]:
    """Lists of nodes whose tasks exited with one of these statuses."""
    codes = "|".join(map(str, statuses))
    pattern = re.compile(rf"{_SRUN}(\S+): tasks? .*Exited with exit code ({codes})$")
    return sorted({found[1] for line in lines if (found := pattern.match(line))})

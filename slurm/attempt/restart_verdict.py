"""Meaning of a failed attempt's end, and whether to continue.

An exit status of our own decides first, then Slurm's state, and only then the end of the log. A line of the log decides
only if a program that reports errors speaks in it: a traceback, NCCL, C++ loggers, Slurm, a launcher, the kernel, and
last a line that was logged as an error. Text of a document that quotes such a message is neither. Of several lines the
root cause decides, not its consequence (by rank in `failure_messages.toml`), and of several roots the first in time. An
error after which the training went on for three reports of progress was survived, and decides nothing.

Where no message is known, the words of the last errors decide: a linear model whose weights
`benchmarks/measures/training/failure_words.py` fits to labelled logs and to catalogues of errors. It says nothing
where it is unsure.
"""

from __future__ import annotations

import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from governance.files import shipped_table

Cause = Literal["code", "data", "node", "network", "storage", "out of memory", "hang", "preemption", "quota"]
Action = Literal["go on", "elsewhere", "later", "stop"]
TAIL_BYTES = 1 << 20
"""Bytes of a log that are read from its end."""
_HALF_LINE = 2048
"""Characters that are read from each end of a longer line.

So a line of a mebibyte takes no longer.
"""
_CONTEXT_LINES = 80
"""Lines after a frame of a traceback in which its exception is accepted: those of other ranks come between."""
_QUOTED_LINES = 6
"""Lines after "Last error:" in which NCCL's own message is accepted."""
_SURVIVED = 3
_ENDED_FIRST = 4
"""Greatest rank of srun's line on the task that ended first: the others' words on a lost peer follow from it."""
_LAST_ERRORS = 12
"""Errors at the end of a log whose words are weighed."""
_SURE = 0.3
"""Least probability of a verdict from words alone."""


@dataclass(frozen=True)
class Verdict:
    """Meaning of a failed attempt's end."""

    cause: Cause
    action: Action
    line: str = ""
    """The line that decided; "" where a status or Slurm's state did."""
    node: str = ""
    """The node at fault, as far as the log names it."""
    by_words: bool = False
    """Words alone decided, since no message is known."""


@dataclass(frozen=True)
class _LogRule:
    speakers: frozenset[str]
    patterns: re.Pattern[str]
    cause: Cause
    action: Action
    rank: int
    """0 for a root cause; a consequence has a higher one."""


OF_STATUS: dict[int, tuple[Cause, Action]] = {
    2: ("code", "stop"), 65: ("data", "stop"), 66: ("data", "stop"), 69: ("node", "later"), 70: ("hang", "go on"),
    71: ("quota", "stop"), 74: ("storage", "later"), 75: ("preemption", "go on"), 76: ("data", "stop"),
    77: ("data", "stop"), 78: ("code", "stop"), 124: ("preemption", "go on"),
    126: ("node", "elsewhere"), 127: ("node", "elsewhere"),
}  # fmt: skip
_OF_STATE: dict[str, tuple[Cause, Action]] = {
    "OUT_OF_MEMORY": ("out of memory", "go on"), "NODE_FAIL": ("node", "elsewhere"), "BOOT_FAIL": ("node", "elsewhere"),
    "PREEMPTED": ("preemption", "go on"), "TIMEOUT": ("preemption", "go on"), "DEADLINE": ("quota", "stop"),
}  # fmt: skip
# https://slurm.schedmd.com/job_state_codes.html

_LABEL = re.compile(
    r"(?:(?P<rank>\d+): |\[(?:rank|default)?(?P<other>\d+)\]:? ?|\[1,(?P<third>\d+)\]<std\w+>:|\(\w+ pid=\d+[^)]*\) "
    r"|\d{4}-\d\d-\d\d[ T][\d:.,]+Z?:? )"
)
"""Prefix of a line: `srun --label`, torchrun, mpirun, Ray, a time. Several may follow one another."""
_FRAME = re.compile(r'  File "[^"]+", line \d+|[│|] \S+:\d+ in |╭─+ Traceback ')
"""A frame of a traceback, of Python or of `rich`."""
_TRACEBACK = "Traceback (most recent call last)"
_IGNORED = re.compile(r"Exception ignored in")
_AS_NCCL = "n:0:0 [0] NCCL WARN "
"""Head of a warning of NCCL."""
_PROGRESS = re.compile(
    r"train: step [\d,]+,|\b(?:step|it|iter|epoch|batch|update)[ =:]{1,9}\[?[\d,]{1,20}(?:/\d{1,20})?\b.{0,300}?"
    r"(?<!\d-)\bloss\b['\"]?[ \t=:|(]{1,9}(?:tensor\()?[-+]?(?:\.?\d|nan\b|inf\b)|iteration {1,9}\d+/"
    r"|\d%\|.{0,300}?\| {0,9}\d+/\d|\{'loss': |Epoch:? \["
)
"""A report of progress: a loss has its value, and is not part of a file's name. Repetitions are bounded."""
_BEFORE_AN_ERROR = re.compile(
    r"(?:ERROR|CRITICAL|FATAL)\b|(?:Error|Exception|Exit|Interrupt|\berror)(?:\(\w+\))?: "
    r"|^(?:[A-Za-z_]\w*\.)+[A-Z]\w*: "
)
"""Level of a log, or class of an exception: after it the words of progress are part of a message."""
_ERROR = re.compile(
    r"(?i)error|exception|fail|(?-i:\bWARN\b)|fatal|killed|signal|abort|timed? ?out|cannot|can't|unable|refus|denied"
    r"|invalid|\bnot? |assert|corrupt|oom|\bnan\b|lost|unreach|crash|dead|exceed|full\b"
)
_NOT_SAID = re.compile(
    r"""\s{3}|\s*#|[>{"'|]|Traceback |\[?W(?:\d{4})?\b|.*(?:\b(?:(?:INFO|DEBUG|WARNING|NOTE)\b|assay: )|Warning: )"""
)
"""Lines of source text, of a quotation, of a warning, of a report, or of our own job scripts ("assay: ...")."""
_ONLY_ENDED = re.compile(
    r"srun: error: \S+: tasks? [\d,-]+: (?:Exited with exit code \d+|Terminated)"
    r"|.*\bfailed \(exitcode: \d+\) local_rank: \d|.*\bexits with return code = \d"
    r"|\S+ FAILED$|Root Cause \(first observed failure\):|Failures:$| +(?:error_file|traceback) *: "
    r"|.*\bChildFailedError:"
)
"""Lines of launchers on a process that ended by itself: their words are alike whatever the cause."""
_CANCELLED = re.compile(r"slurmstepd\S*: error: \*\*\* .{,300}CANCELLED AT (?!.*DUE TO )")
"""Slurm's line on a job that somebody, or srun after a failure, ended."""
_ENDED_WITH_IT = re.compile(
    r"srun: (?:error: \S+: tasks? [\d,-]+: Terminated|Job step aborted|Terminating|Force Terminated"
    r"|forcing job termination)"
)
"""Lines of srun on a step that is cancelled."""
_REASON_TO_LEAVE = re.compile(r"(?i)preempt|time ?limit|node failure|reclaim")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+|(?:/[\w.@+-]+){2,}")
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
Weights = Mapping[str, Mapping[str, float]]
"""A verdict, as "cause, action", to the weights of words; "" is the constant."""


def _read_messages() -> tuple[dict[str, re.Pattern[str]], tuple[_LogRule, ...], Weights]:
    """Speakers, rules and words of `failure_messages.toml`."""
    written = shipped_table(__package__, "failure_messages.toml")
    lists = {f"@{name}": "|".join(patterns) for name, patterns in written["lists"].items()}

    def compiled(patterns: Iterable[str]) -> re.Pattern[str]:
        return re.compile("|".join(lists.get(pattern, pattern) for pattern in patterns))

    speakers = {name: compiled(patterns) for name, patterns in written["speakers"].items()}
    weights = {of: dict(map(_weighed, text.split())) for of, text in written.get("words", {}).items()}
    return speakers, tuple(_rule(message, compiled(message["patterns"])) for message in written["messages"]), weights


def _rule(message: Mapping[str, Any], patterns: re.Pattern[str]) -> _LogRule:
    """A rule of `[[messages]]`, by one speaker or a list of them."""
    speaker = message["speaker"]
    speakers = frozenset([speaker] if isinstance(speaker, str) else speaker)
    return _LogRule(speakers, patterns, message["cause"], message["action"], message["rank"])


def _weighed(pair: str) -> tuple[str, float]:
    """Word and weight of "word:weight"."""
    word, _, weight = pair.partition(":")
    return word, float(weight)


_SPEAKERS, _RULES, _WEIGHTS = _read_messages()
_NODES = (
    re.compile(r"(?:Node failure on|failed on node) ([\w.-]+)"),
    re.compile(r"^(?:\[[\d: -]+\] )?([A-Za-z][\w.-]*):\d+:\d+ \[\d+\]"),
    re.compile(r"^\w{3} +\d+ [\d:]+ ([\w.-]+) kernel:"),
    re.compile(r"^(?:srun: error: )([A-Za-z][\w.-]*): tasks? "),
)
_TASKS = re.compile(r"srun: error: ([A-Za-z][\w.-]*): tasks? ([\d,-]+): ")
_ABORTED = re.compile(r"Aborted|exit code 134")
"""Words on a process that ended itself, as torch does where a peer is lost."""


def verdict_of(text: str, status: int | None, state: str = "") -> Verdict | None:
    """The verdict on an attempt; None where nothing tells.

    Args:
        text: The end of the attempt's log.
        status: Its exit status, where known.
        state: Slurm's state of the job, where known.
    """
    if status == 73:  # another attempt holds the run: no failure of this one
        return None
    if status in OF_STATUS:
        return Verdict(*OF_STATUS[status])
    lines = [_shortened(line) for line in text.splitlines()]
    if state in _OF_STATE:
        cause, action = _OF_STATE[state]
        return Verdict(cause, action, node=_failed_node(lines) if cause == "node" else "")
    # Slurm's line on a cancellation names no cause; with it, SIGTERM may be a user's scancel as well as a preemption.
    telling = _without_cancellation(lines)
    found = _of_log(telling)
    unexplained = len(telling) < len(lines) and not any(map(_REASON_TO_LEAVE.search, telling))
    return None if found is not None and found.cause == "preemption" and unexplained else found


def _without_cancellation(lines: list[str]) -> list[str]:
    """Lines but for those on a cancellation without a reason."""
    said = {line: _unlabelled(line)[1] for line in lines if "srun: " in line or "CANCELLED" in line}
    if not any(map(_CANCELLED.match, said.values())):
        return lines
    return [line for line in lines if not any(of.match(said.get(line, "")) for of in (_CANCELLED, _ENDED_WITH_IT))]


def _of_log(lines: list[str]) -> Verdict | None:
    """The verdict that the lines of a log give."""
    ended = next((line for line in lines if _TASKS.match(_unlabelled(line)[1])), "")
    if _ABORTED.search(ended):
        ended = ""

    def order(error: tuple[_LogRule, str, str]) -> int:
        return min(error[0].rank, _ENDED_FIRST) if error[2] == ended else error[0].rank

    best = min(_errors(lines), key=order, default=None)
    if best is None or best[0] is _RULES[-1]:  # the last rule is for an exception that none knows
        guess = guessed(lines, _WEIGHTS)
        if guess is not None or best is None:
            return guess
    rule, rank, line = best
    return Verdict(rule.cause, rule.action, line.strip(), _node_of(line, rank, lines))


def _shortened(line: str) -> str:
    """Both ends of a long line.

    An error is named at the beginning, and a long value may precede its message.
    """
    if len(line) <= 2 * _HALF_LINE:
        return line
    return f"{line[:_HALF_LINE]} ... {line[-_HALF_LINE:]}"


def tail_of(path: Path, start: int = 0) -> str:
    """End of a log from `start` on; "" where there is none."""
    try:
        with open(path, "rb") as log:
            size = log.seek(0, os.SEEK_END)
            most = min(TAIL_BYTES, max(0, size - start))
            log.seek(max(0, size - most))
            read = log.read(most)
    except OSError:
        return ""
    if size - start > most:  # the first line may be torn
        read = read.partition(b"\n")[2]
    return read.decode("utf-8", "replace")


def _errors(lines: list[str]) -> Iterator[tuple[_LogRule, str, str]]:
    """Rule, rank and line of each error not survived."""
    found, reports = _said(lines)
    for number, rule, rank, line in found:
        if sum(report > number for report in reports) < _SURVIVED:
            yield rule, rank, line


def _said(lines: list[str]) -> tuple[list[tuple[int, _LogRule, str, str]], list[int]]:
    """Errors as number, rule, rank and line; numbers of lines of progress."""
    found: list[tuple[int, _LogRule, str, str]] = []
    frames: dict[str, int] = {}
    ignored: set[str] = set()
    reports = _reports(lines)
    progress = set(reports)
    quoted: dict[str, int] = {}
    for number, line in enumerate(lines):
        if number in progress:
            continue
        rank, said = _unlabelled(line)
        if said.startswith(_TRACEBACK) or _FRAME.match(said):
            frames[rank] = number
        elif _IGNORED.match(said):
            ignored.add(rank)
        elif said.startswith("Last error:"):
            quoted[rank] = number
        elif rule := _rule_for(
            said,
            traced=number - frames.get(rank, -_CONTEXT_LINES) < _CONTEXT_LINES,
            of_nccl=number - quoted.get(rank, -_CONTEXT_LINES) < _QUOTED_LINES,
        ):
            if "exception" in rule.speakers and rank in ignored:  # raised while an object was deleted
                ignored.discard(rank)
                frames.pop(rank, None)
            else:
                found.append((number, rule, rank, line))
        elif said.startswith("terminate called"):
            frames[rank] = number
    return found, reports


def _reports(lines: list[str]) -> list[int]:
    """Numbers of the lines that report progress, outside errors and tracebacks."""
    found: list[int] = []
    traced: set[str] = set()
    for number, line in enumerate(lines):
        rank, said = _unlabelled(line)
        if said.startswith(_TRACEBACK) or _FRAME.match(said):
            traced.add(rank)
        elif rank in traced and not said.startswith(("    ", "│", "|")):
            traced.discard(rank)
        if rank not in traced and (report := _PROGRESS.search(said)) and not _of_error(said, report.start()):
            found.append(number)
    return found


def _of_error(said: str, end: int) -> bool:
    """Return whether a speaker of errors opens a line, before `end`."""
    heads = (head for speaker, head in _SPEAKERS.items() if speaker != "exception")  # its names may be a logger's
    return bool(_BEFORE_AN_ERROR.search(said, 0, end)) or any(head.match(said) for head in heads)


def last_errors(lines: list[str]) -> list[str]:
    """The last lines that speak of an error which was not survived."""
    reports = _reports(lines)
    progress = set(reports)
    start = reports[-_SURVIVED] if len(reports) >= _SURVIVED else 0
    found: deque[str] = deque(maxlen=_LAST_ERRORS)
    ignored: set[str] = set()
    for number, line in enumerate(lines[start:], start):
        rank, said = _unlabelled(line)
        if _IGNORED.match(said):
            ignored.add(rank)
        elif rank in ignored:  # until the exception that was raised while an object was deleted
            if _SPEAKERS["exception"].match(said):
                ignored.discard(rank)
        elif _ERROR.search(said) and number not in progress and not (_NOT_SAID.match(said) or _ONLY_ENDED.match(said)):
            found.append(line)
    return list(found)


def words_of(line: str) -> set[str]:
    """Words of a line without labels, addresses and paths.

    "FileNotFoundError" has "file", "not" and "found".
    """
    words = _WORD.findall(_ADDRESS.sub("", _unlabelled(line)[1]))
    said = {word.lower() for word in words if len(word) > 1 and not (word.isdigit() and len(word) > 3)}
    return said - {"error", "exception"}


def guessed(lines: list[str], weights: Weights) -> Verdict | None:
    """The verdict of the last errors' words; None where it is unsure."""
    errors = {line: words_of(line) for line in last_errors(lines)}
    known = {word for words in errors.values() for word in words if any(word in of for of in weights.values())}
    if not known:
        return None

    def score(label: str, words: Iterable[str]) -> float:
        return sum(weights[label].get(word, 0.0) for word in words) / math.sqrt(len(known))

    scores = {label: math.exp(weights[label].get("", 0.0) + score(label, known)) for label in weights}
    label = max(scores, key=scores.__getitem__, default="")
    if scores[label] < _SURE * sum(scores.values()):
        return None
    line = max(errors, key=lambda line: score(label, errors[line]))
    cause, action = label.split(", ")
    node = _node_of(line, _unlabelled(line)[0], lines)
    return Verdict(cast(Cause, cause), cast(Action, action), line.strip(), node, by_words=True)


def _unlabelled(line: str) -> tuple[str, str]:
    """Rank, "" if unknown, and the line without labels."""
    rank, end = "", 0
    while found := _LABEL.match(line, end):
        rank = found["rank"] or found["other"] or found["third"] or rank
        end = found.end()
    return rank, line[end:]


def _rule_for(said: str, *, traced: bool, of_nccl: bool) -> _LogRule | None:
    """The first rule of a line's speaker that matches it.

    Args:
        said: The line without labels.
        traced: A frame of a traceback is near: the line may be its exception.
        of_nccl: "Last error:" is near: the line may be what NCCL warned of.
    """
    return (_rule_of(_AS_NCCL + said, traced=traced) if of_nccl else None) or _rule_of(said, traced=traced)


def _rule_of(said: str, *, traced: bool) -> _LogRule | None:
    """The rule of the speaker whose prefix begins a line."""
    for speaker, head in _SPEAKERS.items():
        if (found := head.match(said)) and (traced or speaker not in ("exception", "detail")):
            rest = said[found.end() :]
            return next((rule for rule in _RULES if _speaks(rule, speaker) and rule.patterns.search(rest)), None)
    return None


def _speaks(rule: _LogRule, speaker: str) -> bool:
    """Return whether a rule is for a speaker."""
    return speaker in rule.speakers or (
        "exception" in rule.speakers and speaker in ("torch", "native", "detail") and rule.rank != 3
    )


def _node_of(line: str, rank: str, lines: list[str]) -> str:
    """The node that a line names, or srun for its rank."""
    said = _unlabelled(line)[1]
    for pattern in _NODES:
        if found := pattern.search(said):
            return found[1]
    for other in lines:
        if rank and (found := _TASKS.match(other)) and _holds(found[2], int(rank)):
            return found[1]
    return ""


def _failed_node(lines: list[str]) -> str:
    return next((found[1] for line in lines if (found := _NODES[0].search(line))), "")


def _holds(tasks: str, rank: int) -> bool:
    """Return whether a list such as "0-3,7" has a number."""
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        if first and int(first) <= rank <= int(last or first):
            return True
    return False

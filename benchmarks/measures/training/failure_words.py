"""Weights of words for the restart verdict, fitted to labelled logs and to catalogues of errors.

    python benchmarks/measures/training/failure_words.py [--write]

Prints what the words alone reach on each collection, fitted without it. `--write` fits to all, and writes the weights
into `slurm/attempt/failure_messages.toml`.

A multinomial logistic regression on which words the last errors of a log have (`last_errors` and `words_of` of
`slurm/attempt/restart_verdict.py`), divided by the root of their number. Its text: the collections of
`tests/slurm/failure_logs*.toml` but for those held back, the messages of `tests/slurm/failure_catalogue.toml`, and
errno(3), Python's exceptions and HTTP's statuses, as this Python lists them. Weights below `MIN_WEIGHT` are left out.
"""

from __future__ import annotations

import argparse
import errno
import http
import math
import os
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from governance.files import write_text
from slurm.attempt.restart_verdict import Weights, guessed, last_errors, words_of

HERE = Path(__file__).resolve().parents[3]
LOGS = HERE / "tests" / "slurm"
MESSAGES = HERE / "slurm" / "attempt" / "failure_messages.toml"
INVERSE_PENALTY = 30.0
MIN_WEIGHT = 0.35
Example = tuple[str, frozenset[str]]
"""A label, "cause, action", and words."""

ERRNO = {
    "storage, later": "EIO EROFS ENOSPC ESTALE EBUSY ENXIO ENODEV EUCLEAN EREMOTEIO ENOLCK EDEADLK ENOTCONN ESHUTDOWN",
    "network, later": "ECONNRESET ECONNREFUSED ECONNABORTED ETIMEDOUT EHOSTUNREACH EHOSTDOWN ENETUNREACH EPIPE",
    "quota, later": "EDQUOT", "out of memory, go on": "ENOMEM ENOBUFS", "data, stop": "ENOENT EILSEQ EBADMSG",
    "code, stop": "EINVAL EACCES EPERM ENOEXEC E2BIG ENOTDIR EISDIR EMFILE ENAMETOOLONG ENOSYS EBADF",
}  # fmt: skip
EXCEPTIONS = {
    "code, stop": "TypeError ValueError AttributeError AssertionError ImportError ModuleNotFoundError NameError "
    "KeyError UnboundLocalError IndexError NotImplementedError SyntaxError IndentationError ZeroDivisionError "
    "RecursionError OverflowError StopIteration PermissionError IsADirectoryError NotADirectoryError",
    "network, later": "ConnectionError ConnectionResetError ConnectionRefusedError BrokenPipeError TimeoutError",
    "data, stop": "FileNotFoundError EOFError UnicodeDecodeError FloatingPointError",
    "out of memory, go on": "MemoryError",
}  # fmt: skip
OF_HTTP = {429: "quota, later", 404: "data, stop", 410: "data, stop", 416: "data, stop", 408: "network, later",
           507: "storage, later"}  # fmt: skip


def standard_messages() -> list[tuple[str, str]]:
    """Label and message of what this Python lists."""
    found = [
        (label, f"OSError: [Errno {number}] {os.strerror(number)}")
        for label, names in ERRNO.items() for name in names.split() for number in [getattr(errno, name)]
    ]  # fmt: skip
    found += [(label, f"{name}: ") for label, names in EXCEPTIONS.items() for name in names.split()]
    for status in http.HTTPStatus:
        label = OF_HTTP.get(status, "network, later" if status >= 500 else "code, stop")
        side = "Server" if status >= 500 else "Client"
        if status >= 400:
            found.append((label, f"HTTPError: {status.value} {side} Error: {status.phrase}"))
    return found


def collections() -> dict[str, list[dict[str, Any]]]:
    """The labelled logs by file, without those that are held back from every fit."""
    return {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8"))["log"]
        for path in sorted(LOGS.glob("failure_logs*.toml"))
        if not path.stem.endswith("held_back")
    }


def catalogue() -> list[Example]:
    """The messages of the catalogues."""
    written = tomllib.loads((LOGS / "failure_catalogue.toml").read_text(encoding="utf-8"))
    listed = [(label, f"error: {message}") for label, table in written.items()
              for message in table["messages"] + table["printed"]]  # fmt: skip
    return [(label, frozenset(words_of(message))) for label, message in [*listed, *standard_messages()]]


def examples(logs: Sequence[dict[str, Any]]) -> list[Example]:
    """Label and words of each log."""
    found = []
    for log in logs:
        words = {word for line in last_errors(log["text"].splitlines()) for word in words_of(line)}
        found.append((f"{log['cause']}, {log['action']}", frozenset(words)))
    return found


def fit(given: Sequence[Example]) -> Weights:
    """Weights of the words of each label, rounded to a tenth."""
    seen = Counter(word for _, words in given for word in words)
    place = {word: at for at, word in enumerate(sorted(word for word, times in seen.items() if times > 1))}
    table = np.zeros((len(given), len(place)))
    for row, (_, words) in enumerate(given):
        known = [place[word] for word in words if word in place]
        table[row, known] = 1 / math.sqrt(max(1, len(known)))
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(table, [label for label, _ in given])
    fitted: dict[str, dict[str, float]] = {}
    for label, weights, constant in zip(model.classes_, model.coef_, model.intercept_, strict=True):
        kept = {word: round(float(weights[at]), 1) for word, at in place.items() if abs(weights[at]) >= MIN_WEIGHT}
        ordered = dict(sorted(kept.items(), key=lambda pair: -pair[1]))
        fitted[str(label)] = {"": round(float(constant), 1), **ordered}
    return fitted


def written(weights: Weights) -> str:
    """The table `[words]` of the file of messages."""
    lines = [
        "[words]",
        "# Weights of words where no message decides, written by failure_words.py in benchmarks/; do not edit.",
        "# The first number is the constant.",
    ]  # fmt: skip
    for label, of in weights.items():
        pairs = " ".join(f"{word}:{weight:g}" for word, weight in of.items())
        lines += [f'"{label}" = """', *textwrap.wrap(pairs, 120), '"""']
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit, and print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the weights of all logs")
    logs = collections()
    if parser.parse_args().write:
        weights = fit([*catalogue(), *examples([log for of in logs.values() for log in of])])
        rules = MESSAGES.read_text(encoding="utf-8").partition("\n[words]\n")[0].rstrip("\n")
        write_text(MESSAGES, f"{rules}\n\n{written(weights)}")
        return
    for left_out, of in logs.items():
        rest = [log for name, others in logs.items() if name != left_out for log in others]
        weights = fit([*catalogue(), *examples(rest)])
        found = [guessed(log["text"].splitlines(), weights) for log in of]
        right = sum(one is not None and one.cause == log["cause"] for one, log in zip(found, of, strict=True))
        print(f"{left_out}: right cause {right / len(of):.3f} of {len(of)}, unsure {found.count(None)}")


if __name__ == "__main__":
    main()

"""Counts of the words that GPT-2's pre-tokenizer finds in texts.

gigatoken counts them, in a process of its own: it prints its progress, and the memory of all words ends with it. Texts
with characters that `tokenizers` does not know go through that library, whose words they must be.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import re2

from data_pipeline.tokens.unknown_characters import unknown_characters, words_of_library
from governance.errors import PipelineError
from governance.processes import end_with_parent

_BATCH_BYTES = 16 << 20
_SEPARATOR = b"\xff"  # in no UTF-8 text
_SIZE = struct.Struct("<Q")
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from data_pipeline.tokens.word_counts import serve; serve()"


class WordCounts(NamedTuple):
    """Distinct words, in the order of their bytes."""

    letters: bytes
    """All words, joined."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each."""
    counts: npt.NDArray[np.int64]


def count_words(texts: Iterable[str]) -> WordCounts:
    """Occurrences of each word in the texts.

    Raises:
        PipelineError: the process was killed or failed.
    """
    command, pipe = [sys.executable, "-c", _CHILD, *sys.path], subprocess.PIPE
    with tempfile.TemporaryFile() as log:
        try:
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log) as child:
                assert child.stdin is not None, "it is a pipe"
                assert child.stdout is not None, "it is a pipe"
                for batch in itertools.chain([unknown_characters().encode()], batches(texts)):
                    child.stdin.write(_SIZE.pack(len(batch)) + batch)
                child.stdin.close()
                return WordCounts(*pickle.load(child.stdout))
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            log.seek(0)
            raise PipelineError(_reason(child.returncode, log.read().decode("utf-8", "replace"))) from error


def _reason(code: int, log: str) -> str:
    """The error of a process that ended with this code and log."""
    lines = log.split("\n") if code > 0 and "MemoryError" not in log else []
    if last := next((line.strip() for line in reversed(lines) if line.strip()), ""):
        return (
            f"tokenizer: the process that counts words failed (exit code {code}): {last[:300]}. Remove that cause, "
            f"then run the same command again."
        )
    return (
        "tokenizer: the process that counts words ended before its work did, most likely for lack of memory. Run the "
        "same command again when more is free, or with a smaller data.tokenizer.sample_bytes."
    )


def batches(texts: Iterable[str]) -> Iterator[bytes]:
    """Texts joined by a byte that is in none, 16 MiB each."""
    held: list[bytes] = []
    size = 0
    for text in texts:
        held.append(text.encode("utf-8"))
        size += len(held[-1])
        if size >= _BATCH_BYTES:
            yield _SEPARATOR.join(held)
            held, size = [], 0
    yield _SEPARATOR.join(held)


def serve() -> None:
    """Count the batches of standard input; write the words out.

    The first is the pattern of `counted`.
    """
    end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # gigatoken prints there
    read = (source.read(_SIZE.unpack(size)[0]) for size in iter(lambda: source.read(_SIZE.size), b""))
    words = counted(next(read).decode("utf-8"), read)
    with target:
        pickle.dump(tuple(words), target)


def counted(pattern: str, parts: Iterable[bytes]) -> WordCounts:
    """The words of batches, counted on this process's threads.

    Texts that `pattern` finds go through the library.
    """
    from gigatoken.gigatoken_rs import pretokenized_counts

    unknown = re2.compile(pattern)
    total: dict[bytes, int] = {}
    for part in parts:
        known, others = part, []
        if unknown.search(part):
            texts = part.split(_SEPARATOR)
            others = [text for text in texts if unknown.search(text)]
            known = _SEPARATOR.join(text for text in texts if not unknown.search(text))
        for word, count in pretokenized_counts(known, _SEPARATOR):
            total[word] = total.get(word, 0) + count
        for word in words_of_library(others):
            total[word] = total.get(word, 0) + 1
    words = sorted(total)
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    return WordCounts(b"".join(words), sizes, np.fromiter(map(total.__getitem__, words), np.int64, len(words)))

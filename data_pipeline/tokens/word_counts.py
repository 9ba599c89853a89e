"""Counts of the words that GPT-2's pre-tokenizer finds in texts.

gigatoken counts them, in a process of its own: it prints its progress, and the memory of all words ends with it.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

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
        PipelineError: the process was killed.
    """
    command, pipe = [sys.executable, "-c", _CHILD, *sys.path], subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as child:
            assert child.stdin is not None, "it is a pipe"
            assert child.stdout is not None, "it is a pipe"
            for batch in batches(texts):
                child.stdin.write(_SIZE.pack(len(batch)) + batch)
            child.stdin.close()
            return WordCounts(*pickle.load(child.stdout))
    except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
        raise PipelineError(
            "tokenizer: the process that counts words ended before its work did, most likely for lack of memory. Run "
            "the same command again when more is free, or with a smaller data.tokenizer.sample_bytes."
        ) from error


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
    """Count the batches of standard input; write the words out."""
    end_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # gigatoken prints there
    words = counted(source.read(_SIZE.unpack(size)[0]) for size in iter(lambda: source.read(_SIZE.size), b""))
    with target:
        pickle.dump(tuple(words), target)


def counted(parts: Iterable[bytes]) -> WordCounts:
    """The words of batches, counted on this process's threads."""
    from gigatoken.gigatoken_rs import pretokenized_counts

    total: dict[bytes, int] = {}
    for part in parts:
        for word, count in pretokenized_counts(part, _SEPARATOR):
            total[word] = total.get(word, 0) + count
    words = sorted(total)
    sizes = np.fromiter(map(len, words), np.int64, len(words))
    return WordCounts(b"".join(words), sizes, np.fromiter(map(total.__getitem__, words), np.int64, len(words)))

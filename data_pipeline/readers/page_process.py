"""A process that parses HTML pages for this one: no page can slow it down for long, fill its memory or kill it.

Signals do not interrupt a parser's native code, and parsers are quadratic in what an attacker can write (unclosed
`<b>` with different attributes: 1,000 of them cost 0.8 s and 200 MB, 3,000 more than 20 s). What works is the kernel:
the child arms, for each page, a timer of its own CPU time whose signal ends it, and lives under a limit of address
space. This process sees the pipe close, says why, and starts the next child when it is needed. Depth alone is no
danger: a million nested elements are read in 8 s.

The time allowed is `SECONDS` and `SECONDS_PER_MIB` more for each MiB: 20 times what an honest page takes (10 MB/s) and
more. Price: one process of 40 MB more a worker, and two copies of each page through a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

from data_pipeline.readers.html import Page, extract
from data_pipeline.readers.record import Fault, Record, sample
from governance.errors import PipelineError

MAX_PAGE_BYTES = 16 << 20
"""Larger pages are refused unread: what the parser makes of them would not fit a worker's memory."""
SECONDS = 4.0
"""CPU-seconds that any page may take; loading the fallback, 0.6 s once, is among them."""
SECONDS_PER_MIB = 2.0
ADDRESS_SPACE_BYTES = 3 << 30
_COUNT = struct.Struct("<Q")  # of pages that follow, or of bytes of the answer
_LENGTHS = struct.Struct("<QQd")  # bytes of the page, bytes of the charset's name, CPU-seconds
_READY = b"ready\n"
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from data_pipeline.readers.page_process import serve; serve()"

_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}  # by the process that started it: a fork must not share a pipe
_LOCK = threading.Lock()


def read_html(data: bytes, file: str, position: int = 0, charset: str = "") -> Record | Fault:
    """The main text of a page; `charset` is what its transport said, "" where nothing did."""
    page = read_page(data, charset)
    if isinstance(page, Page):
        return Record(page.text, file, position, fallback=page.fallback)
    return Fault(file, position, page, sample(data))


def read_page(data: bytes, charset: str = "") -> Page | str:
    """What a page says, or `html_too_large`, `html_too_slow`, `html_broke_parser` or `not_html`.

    Raises:
        PipelineError: the other process cannot be started.
    """
    return read_pages([(data, charset)])[0]


def read_pages(pages: Sequence[tuple[bytes, str]]) -> list[Page | str]:
    """The same of several pages (bytes, charset) at once, which spares the two processes waking each other for each.

    Raises:
        PipelineError: the other process cannot be started.
    """
    sent = [(data, charset) for data, charset in pages if len(data) <= MAX_PAGE_BYTES]
    with _LOCK:
        answers = _ask(sent)
        if isinstance(answers, str):  # one of them ended the child: each by itself shows which
            answers = [_ask_one(page, answers if len(sent) == 1 else "") for page in sent]
    found = iter(answers)
    return [next(found) if len(data) <= MAX_PAGE_BYTES else "html_too_large" for data, _ in pages]


def _ask_one(page: tuple[bytes, str], known: str) -> Page | str:
    answers = known or _ask([page])
    return answers if isinstance(answers, str) else answers[0]


def _ask(pages: Sequence[tuple[bytes, str]]) -> list[Page | str] | str:
    """What the child says of each page, or why it ended."""
    child = _child()
    assert child.stdin is not None, "it is a pipe"
    assert child.stdout is not None, "it is a pipe"
    try:
        child.stdin.write(_COUNT.pack(len(pages)))
        for data, charset in pages:
            name = charset.encode("utf-8", "replace")
            seconds = SECONDS + SECONDS_PER_MIB * len(data) / (1 << 20)
            child.stdin.write(_LENGTHS.pack(len(data), len(name), seconds) + name)
            child.stdin.write(data)
        child.stdin.flush()
        replies = json.loads(_read(child.stdout, _COUNT.unpack(_read(child.stdout, _COUNT.size))[0]))
    except (EOFError, BrokenPipeError):
        return _why(child)
    except BaseException:  # interrupted in the middle of a page: what the pipe holds belongs to no one
        close()
        raise
    return [reply if isinstance(reply, str) else Page(reply[0], reply[1], tuple(reply[2])) for reply in replies]


def _why(child: subprocess.Popen[bytes]) -> str:
    import signal

    _CHILDREN.pop(os.getpid(), None)
    _end(child)
    return "html_too_slow" if child.returncode == -signal.SIGPROF else "html_broke_parser"


def _child() -> subprocess.Popen[bytes]:
    child = _CHILDREN.get(os.getpid())
    if child is None or child.poll() is not None:
        child = _CHILDREN[os.getpid()] = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None, "it is a pipe"
        if child.stdout.read(len(_READY)) != _READY:
            close()
            raise PipelineError(
                "the process that parses HTML pages ended as it started. Is resiliparse installed? "
                "See what this prints: python -c 'import data_pipeline.readers.html, resiliparse.extract.html2text'"
            )
    return child


def close() -> None:
    """End the process, if there is one; the next page starts another."""
    child = _CHILDREN.pop(os.getpid(), None)
    if child is not None:
        child.kill()
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    child.wait()


def _read(source: IO[bytes], count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise EOFError
    return data


def serve(address_space_bytes: int = ADDRESS_SPACE_BYTES) -> None:
    """The child's whole life: pages in on standard input, what they say out on standard output, until that closes."""
    import resource
    import signal

    import resiliparse.extract.html2text
    import resiliparse.parse.encoding  # noqa: F401, both now: the first page's time is its own

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the run closes the pipe
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (address_space_bytes, resource.RLIM_INFINITY))
    source, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(_READY)
    answers.flush()
    with contextlib.suppress(EOFError):
        while True:
            pages = [_receive(source) for _ in range(_COUNT.unpack(_read(source, _COUNT.size))[0])]
            answer = json.dumps([_reply(*page) for page in pages], ensure_ascii=False).encode("utf-8", "replace")
            answers.write(_COUNT.pack(len(answer)) + answer)
            answers.flush()


def _receive(source: IO[bytes]) -> tuple[bytes, str, float]:
    size, name_size, seconds = _LENGTHS.unpack(_read(source, _LENGTHS.size))
    charset = _read(source, name_size).decode("utf-8")
    return _read(source, size), charset, seconds


def _reply(data: bytes, charset: str, seconds: float) -> object:
    import signal

    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        page = extract(data, charset)
        return [page.text, page.fallback, page.signals]
    except MemoryError:
        return "html_broke_parser"
    except Exception:  # foreign parsers on hostile bytes; what they raise has no common name
        return "not_html"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)

"""HTML and PDF parsing in a child process, within time and memory.

Signals do not interrupt a parser's native code, and parsers are quadratic in what an attacker can write (unclosed
`<b>` with different attributes: 1,000 of them cost 0.8 s and 200 MB, 3,000 more than 20 s). What works is the kernel:
the child arms, for each page, a timer of its own CPU time whose signal ends it, and a limit of its address space. This
process sees the pipe close, says why, and starts the next child when it is needed. Small pages are read together, step
by step, within the bounds of one of them: 50 pages take a third longer one after another, since the code and tables of
one step push those of the others out of the processor's caches. Where they exceed the bounds, the child ends, and each
is read by itself in the next: what a failed parse leaves mapped would come on top of a page's bound. Depth alone is not
a danger: a million nested elements are read in 3 s.

Both bounds grow with the page, and are above what real pages need. Measured: manuals, joined to 15 MiB, take 0.06 s and
27 bytes per byte; a table of digits, the densest page that people write, 0.4 s per MiB and 66 bytes per byte; the
fallback, for pages of up to 512 KiB, 1 s with its loading. Price: one process of 80 MB more per worker, and two copies
of each page through a pipe.

A PDF file is one "page" here, with bounds of its own: 10 s and 10 s per MiB, two minutes at most, and 512 MiB and 8
bytes per byte. Measured: 390 pages of text per CPU-second; such a page is 2 to 5 KiB.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import IO, Any, NamedTuple

from data_pipeline.readers.pages.extraction import ASSAY, PDF, WIKITEXT, Extraction, HtmlPage, check_installed
from data_pipeline.readers.pdf.page_flow import PdfText
from data_pipeline.readers.record import Record, RecordFault, sample
from governance.errors import PipelineError
from governance.malloc import keep_freed_memory

MAX_PAGE_BYTES = 16 << 20
"""Larger pages are refused unread: what the parser makes of them would not fit a worker's memory."""
SECONDS = 2.0
"""CPU-seconds that any page may take: twice what the fallback takes on the largest page that it reads."""
SECONDS_PER_MIB = 1.0
PAGE_MEMORY_BYTES = 256 << 20
"""Bytes of address space that any page may take beyond what the process has as it begins."""
MEMORY_PER_BYTE = 80
"""As many more for each of the page's."""
_PDF_SECONDS, _PDF_SECONDS_PER_MIB, _PDF_SECONDS_AT_MOST = 10.0, 10.0, 120.0
_PDF_MEMORY_BYTES, _PDF_MEMORY_PER_BYTE = 512 << 20, 8
_SMALL_BYTES = 64 << 10  # pages of up to this many are read together: 64 of them stay far within the bounds of one
_TIRED_BYTES = 128 << 20  # a child that keeps this much more than at its start gives way to another
_KEPT_BYTES = 16 << 20
_PIPE_BYTES = 1 << 18  # several pages pass at once, so that neither process wakes the other for each
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_COUNT = struct.Struct("<Q")  # number of pages that follow, or of bytes of the answer
_HEAD = struct.Struct("<QQdQ")  # bytes of the page, bytes of extraction and charset, CPU-seconds, bytes of memory
_READY = b"ready\n"
_PDF_MODULE = "data_pipeline.readers.pdf.text_layer"  # loads PDFium, which only the child needs
_CHILD = "import sys; sys.path[:] = sys.argv[1:]; from data_pipeline.readers.page_process import serve; serve()"

_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}  # keyed by the process that started it: a fork must not share a pipe
_LOCK = threading.Lock()


class _PageRequest(NamedTuple):
    """A page as the child gets it."""

    data: bytes
    charset: str
    way: Extraction
    seconds: float
    memory: int
    """Bytes of address space that it may take."""


def read_html(data: bytes, file: str, position: int = 0, way: Extraction = ASSAY) -> Record | RecordFault:
    """The main text of a page of no known transport."""
    page = read_page(data, way=way)
    if isinstance(page, HtmlPage):
        return Record(page.text, file, position, fallback=page.fallback)
    return RecordFault(file, position, page, sample(data))


def read_pdf(data: bytes) -> PdfText | str:
    """Text layer of a PDF file, or the fault's reason.

    A reason is `pdf_password`, `pdf_too_many_pages`, `pdf_too_slow`, `pdf_broke_parser`, `truncated_pdf`
    or `not_pdf`.

    Raises:
        PipelineError: the other process cannot be started.
    """
    with _LOCK:
        answer = _ask_one((data, ""), "", PDF)
    if isinstance(answer, HtmlPage):
        raise TypeError("the process answered with a page")
    return answer


def read_page(data: bytes, way: Extraction = ASSAY) -> HtmlPage | str:
    """Content of a page, or the fault's reason.

    A reason is `html_too_large`, `html_too_slow`, `html_broke_parser` or `not_html`.

    Raises:
        PipelineError: the other process cannot be started.
    """
    [page] = read_pages([(data, "")], way)
    return page


def read_pages(pages: Sequence[tuple[bytes, str]], way: Extraction = ASSAY) -> list[HtmlPage | str]:
    """Content of several pages (bytes, charset), in one exchange.

    Raises:
        ConfigError: the extractor's package is not installed.
        PipelineError: the other process cannot be started.
    """
    sent = [(data, charset) for data, charset in pages if len(data) <= MAX_PAGE_BYTES]
    check_installed(way)
    with _LOCK:
        answers = _ask(sent, way)
        if isinstance(answers, str):  # one of them ended the child: each by itself shows which
            answers = [_ask_one(page, answers if len(sent) == 1 else "", way) for page in sent]
    found = iter([answer for answer in answers if not isinstance(answer, PdfText)])
    return [next(found) if len(data) <= MAX_PAGE_BYTES else "html_too_large" for data, _ in pages]


def _ask_one(page: tuple[bytes, str], known: str, way: Extraction) -> HtmlPage | PdfText | str:
    answers = known or _ask([page], way)
    return answers if isinstance(answers, str) else answers[0]


def _ask(pages: Sequence[tuple[bytes, str]], way: Extraction) -> list[HtmlPage | PdfText | str] | str:
    """The child's answer to each page, or why it ended."""
    child = _child()
    assert child.stdin is not None, "it is a pipe"
    assert child.stdout is not None, "it is a pipe"
    message = [_COUNT.pack(len(pages))]
    for data, charset in pages:
        name = " ".join((*way, charset)).encode("utf-8", "replace")
        seconds = SECONDS + SECONDS_PER_MIB * len(data) / (1 << 20)
        memory = PAGE_MEMORY_BYTES + MEMORY_PER_BYTE * len(data)
        if way == PDF:
            seconds = min(_PDF_SECONDS_AT_MOST, _PDF_SECONDS + _PDF_SECONDS_PER_MIB * len(data) / (1 << 20))
            memory = _PDF_MEMORY_BYTES + _PDF_MEMORY_PER_BYTE * len(data)
        message += (_HEAD.pack(len(data), len(name), seconds, memory), name, data)
    try:
        child.stdin.write(b"".join(message))
        child.stdin.flush()
        tired, said = json.loads(_read(child.stdout, _COUNT.unpack(_read(child.stdout, _COUNT.size))[0]))
        answers = [_answer(child.stdout, reply, way) for reply in said]
    except (EOFError, BrokenPipeError):
        return _end_and_explain(child, "pdf" if way == PDF else "html")
    except BaseException:  # interrupted in the middle of a page: what the pipe holds belongs to no one
        close()
        raise
    if tired:
        close()
    return answers


def _answer(source: IO[bytes], reply: Any, way: Extraction) -> HtmlPage | PdfText | str:
    """A page from the child's answer, or the reason for its absence."""
    if isinstance(reply, str):
        return reply
    size, fact, names = reply
    text = _read(source, size).decode("utf-8")
    return PdfText(text, fact, tuple(names)) if way == PDF else HtmlPage(text, fact, tuple(names))


def _end_and_explain(child: subprocess.Popen[bytes], kind: str) -> str:
    _CHILDREN.pop(os.getpid(), None)
    _end(child)
    return f"{kind}_too_slow" if child.returncode == -signal.SIGPROF else f"{kind}_broke_parser"


def _child() -> subprocess.Popen[bytes]:
    child = _CHILDREN.get(os.getpid())
    if child is None or child.poll() is not None:
        child = _CHILDREN[os.getpid()] = subprocess.Popen(
            [sys.executable, "-c", _CHILD, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=_PIPE_BYTES,
        )
        assert child.stdin is not None, "it is a pipe"
        assert child.stdout is not None, "it is a pipe"
        with contextlib.suppress(OSError):  # a user's pipes are bounded in all (pipe(7), pipe-user-pages-soft)
            for pipe in (child.stdin, child.stdout):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
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


def serve() -> None:
    """Main loop of the child process.

    Pages come in on standard input and results go out on standard output, until the input closes.
    """
    import resource

    import resiliparse.extract.html2text
    import resiliparse.parse.encoding  # noqa: F401, these now: the first page's time is its own

    import data_pipeline.readers.html

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the run closes the pipe
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_freed_memory(_KEPT_BYTES, _KEPT_BYTES // 4)  # faulting it in again costs half of a small page's time
    gc.freeze()  # loaded modules stay
    start, ready = _address_space(), set[Extraction]()
    source = io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), _PIPE_BYTES)
    answers = sys.stdout.buffer
    answers.write(_READY)
    answers.flush()
    with contextlib.suppress(EOFError):
        while True:
            pages = [_receive(source) for _ in range(_COUNT.unpack(_read(source, _COUNT.size))[0])]
            for way in {page.way for page in pages if page.way.extractor == ASSAY.extractor} - ready:
                data_pipeline.readers.html.extract(b"<p>.</p>", "", way)  # loads model and kernels, or compiles these
                ready.add(way)
                start = _address_space()
            replies = _replies(pages, start)
            _bound_memory(resource.RLIM_INFINITY)
            tired = _tired(start)
            said = json.dumps([tired, [reply for reply, _ in replies]], ensure_ascii=False).encode("utf-8", "replace")
            answers.write(b"".join((_COUNT.pack(len(said)), said, *(text for _, text in replies))))
            answers.flush()


def _tired(start: int) -> bool:
    """True if this process keeps too much more than at its start."""
    return _address_space() - start > _TIRED_BYTES


def _address_space() -> int:
    """Bytes of address space that this process has."""
    try:
        return int(os.pread(_statm(), 64, 0).split()[0]) * _PAGE_BYTES
    except OSError:  # no Linux
        return 1 << 30


@cache
def _statm() -> int:
    return os.open("/proc/self/statm", os.O_RDONLY)


def _bound_memory(size_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, resource.RLIM_INFINITY))


def _receive(source: IO[bytes]) -> _PageRequest:
    size, name_size, seconds, memory = _HEAD.unpack(_read(source, _HEAD.size))
    extractor, structure, charset = _read(source, name_size).decode("utf-8").split(" ", 2)
    return _PageRequest(_read(source, size), charset, Extraction(extractor, structure), seconds, memory)  # type: ignore[arg-type]  # as they were sent


def _replies(pages: Sequence[_PageRequest], start: int) -> list[tuple[object, bytes]]:
    """The child's answer to each page, and its text.

    Small pages are read together, within the least bounds of any. Where that fails, and where the process is tired
    before a page that is read alone, it ends, so no page passes that would not pass as the only one of its message.

    Args:
        pages: those of one message.
        start: bytes of address space before the first message.
    """
    together = [page for page in pages if page.way == ASSAY and len(page.data) <= _SMALL_BYTES]
    found = iter(_read_together(together) if len(together) > 1 else [None] * len(together))
    replies = []
    for page in pages:
        text = next(found) if page.way == ASSAY and len(page.data) <= _SMALL_BYTES else None
        if text is None and len(pages) > 1 and _tired(start):
            os._exit(1)
        replies.append(_reply(page) if text is None else _page_reply(text[0], False, text[1]))
    return replies


def _read_together(pages: Sequence[_PageRequest]) -> Sequence[tuple[bytes, tuple[str, ...]] | None]:
    """Main text and signals of small pages.

    None stands for a page that is to be read alone. Where it fails, the process ends.
    """
    from data_pipeline.readers.html import extract_several

    _bound_memory(_address_space() + min(page.memory for page in pages))
    signal.setitimer(signal.ITIMER_PROF, min(page.seconds for page in pages))
    try:
        return extract_several([(page.data, page.charset) for page in pages])
    except Exception:  # any class: without memory the parser raises several, and what it took stays mapped
        os._exit(1)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _page_reply(text: bytes, fallback: bool, signals: Sequence[str]) -> tuple[object, bytes]:
    return (len(text), fallback, signals), text


def _reply(asked: _PageRequest) -> tuple[object, bytes]:
    """The child's answer to one page, and the page's text."""
    from data_pipeline.readers.html import extract

    kind = "pdf" if asked.way == PDF else "html"
    if asked.way.extractor not in (ASSAY.extractor, WIKITEXT.extractor):
        import_module(
            _PDF_MODULE if asked.way == PDF else asked.way.extractor
        )  # before the bounds: the first page's time and memory are its own
    _bound_memory(_address_space() + asked.memory)
    signal.setitimer(signal.ITIMER_PROF, asked.seconds)
    try:
        if asked.way == PDF:
            found = import_module(_PDF_MODULE).extract_pdf(asked.data)
            if isinstance(found, str):
                return found, b""
            text = found.text.encode("utf-8", "replace")
            return (len(text), found.pages, found.needs_ocr), text
        page = extract(asked.data, asked.charset, asked.way)
        return _page_reply(page.text.encode("utf-8", "replace"), page.fallback, page.signals)
    except MemoryError:
        return f"{kind}_broke_parser", b""
    except Exception:  # foreign parsers on hostile bytes; what they raise has no common name
        return f"not_{kind}", b""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)

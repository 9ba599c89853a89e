"""Web archives: served pages as records, other records counted.

A record is the text of an HTTP response of status 200 whose media type the source names: of HTML its main text, of
plain text all. Its position is the byte of the file at which its WARC record begins (`warc_stream` says how that is
unique), its url the target URI, and `opt_out` what headers, `meta` elements and, where they are given, the host's files
reserve, read on WARC-Date.

Passed over, by reason: `not_a_response` (requests, metadata, revisits ...), `not_http` (an answer of a name server or
of FTP), `status_not_200`, `other_content_type`. They are not records of the source, hence not faults: a crawl holds
millions of them.

Faults: `warc_torn_record`, `warc_bad_header` (the next record is found again), `warc_digest_mismatch` (the block is not
what WARC-Block-Digest says), `warc_bad_http`, `warc_bad_payload` (its chunks or its compression break off),
`warc_too_large` (64 MiB of block or of payload), `no_text`, and those of `page_process`.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline.readers.html import decode_html
from data_pipeline.readers.opt_out import HostRules, header_signals, host_rules, is_host_file, page_opt_out
from data_pipeline.readers.page_process import read_pages
from data_pipeline.readers.pages.extraction import HtmlPage
from data_pipeline.readers.record import Record, RecordFault, encodable, sample
from data_pipeline.readers.sources import WarcSource
from data_pipeline.readers.streams import TornStream, blocks, lines, plain_name
from data_pipeline.readers.warc_stream import MAX_BLOCK_BYTES, RawRecord, raw_records
from governance.errors import ConfigError, MissingInput

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

_BATCH_BYTES = 1 << 18
_BATCH_PIECES = 64
_DIGESTS = ("SHA1", "SHA256", "SHA512", "MD5")
_HOST_FILE = re.compile(rb"\r\nWARC-Target-URI:[^\r\n]*/(?:robots\.txt|ai\.txt|tdmrep\.json)>?\r\n", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")


class _Response(NamedTuple):
    """An HTTP response, understood."""

    url: str
    fetched: str
    status: int
    media_type: str
    charset: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    truncated: bool
    """The crawler says itself that it stored the start only (WARC-Truncated)."""


class _Payload(NamedTuple):
    """The body of a chosen response, without its encodings."""

    place: int
    response: _Response
    data: bytes


def read_warc(
    path: Path, file: str, source: WarcSource, *, rules: HostRules | None = None, passed: Counter[str] | None = None
) -> Iterator[Record | RecordFault]:
    """Records and faults of one WARC file, in order.

    `rules` holds the hosts' statements (`load_host_rules`); `passed` counts skipped records by reason.

    Raises:
        MissingInput: the file cannot be opened.
    """
    counted: Counter[str] = Counter() if passed is None else passed
    waiting: list[_Payload | RecordFault] = []
    held = 0
    for piece in _payloads(path, file, frozenset(name.lower() for name in source.content_types), counted):
        waiting.append(piece)
        held += len(piece.data) if isinstance(piece, _Payload) else 0
        if held > _BATCH_BYTES or len(waiting) >= _BATCH_PIECES:
            yield from _read_batch(waiting, file, source, rules)
            waiting, held = [], 0
    yield from _read_batch(waiting, file, source, rules)


def _payloads(path: Path, file: str, types: frozenset[str], passed: Counter[str]) -> Iterator[_Payload | RecordFault]:
    for raw in raw_records(path):
        if not isinstance(raw, RawRecord):
            yield RecordFault(file, raw.place, raw.reason, sample(raw.data))
            continue
        found = _response(raw)
        if isinstance(found, _Response):
            found = _why_passed(found, types) or found
        if isinstance(found, str):
            if found.startswith("passed:"):
                passed[found.removeprefix("passed:")] += 1
            else:
                yield RecordFault(file, raw.place, found, sample(raw.data))
            continue
        data = "warc_too_large" if raw.cut else payload(found.headers, found.body, found.truncated)
        if isinstance(data, str):
            yield RecordFault(file, raw.place, data, sample(found.url))
        else:
            yield _Payload(raw.place, found, data)


def _read_batch(
    pieces: Sequence[_Payload | RecordFault], file: str, source: WarcSource, rules: HostRules | None
) -> Iterator[Record | RecordFault]:
    """Payloads as records, in order; their pages are parsed in one go."""
    html = [piece for piece in pieces if isinstance(piece, _Payload) and piece.response.media_type != "text/plain"]
    pages = iter(read_pages([(piece.data, piece.response.charset) for piece in html], source.extraction))
    least = source.min_text_characters
    for piece in pieces:
        if isinstance(piece, RecordFault):
            yield piece
        elif piece.response.media_type == "text/plain":
            yield _record(
                piece, HtmlPage(decode_html(piece.data, piece.response.charset), False, ()), file, least, rules
            )
        else:
            yield _record(piece, next(pages), file, least, rules)


def _why_passed(response: _Response, types: frozenset[str]) -> str:
    if response.status != 200:
        return "passed:status_not_200"
    return "" if response.media_type in types else "passed:other_content_type"


def _response(raw: RawRecord) -> _Response | str:
    """The HTTP response of a record, or the reason for its absence."""
    from fastwarc.warc import WarcRecord, WarcRecordType

    try:
        record = WarcRecord.from_bytes(raw.data)
    except (OSError, ValueError):
        return "warc_bad_header"
    if record.record_type != WarcRecordType.response:
        return "passed:not_a_response"
    if not raw.cut and _differs(record):
        return "warc_digest_mismatch"
    try:
        record.parse_http(auto_decode="none")
        found = _understood(record)
    except (OSError, ValueError, TypeError):
        found = None
    scheme = (record.headers.get("WARC-Target-URI") or "http:").strip("<> ").partition(":")[0].lower()
    return found or ("warc_bad_http" if scheme in ("http", "https") else "passed:not_http")


def _differs(record: WarcRecord) -> bool:
    """Return whether a block differs from its stated digest."""
    name, _, digest = (record.headers.get("WARC-Block-Digest") or "").upper().partition(":")
    if name not in _DIGESTS:
        return False
    # fastwarc compares base32 as RFC 4648 writes it: in capitals, filled up to eight characters
    record.headers["WARC-Block-Digest"] = f"{name}:{digest}{'=' * (-len(digest) % 8)}"
    return not record.verify_block_digest()


def is_altered(raw: RawRecord) -> bool:
    """Return whether a whole record's block differs from its stated digest."""
    from fastwarc.warc import WarcRecord

    try:
        return _differs(WarcRecord.from_bytes(raw.data))
    except (OSError, ValueError):
        return True


def _understood(record: WarcRecord) -> _Response | None:
    http: Any = record.http_headers
    if http is None or http.status_code is None:
        return None
    field = record.headers.get
    reader: Any = record.reader
    return _Response(
        encodable((field("WARC-Target-URI") or "").strip("<> ")),
        encodable(field("WARC-Date") or ""),
        int(http.status_code),
        (record.http_content_type or field("WARC-Identified-Payload-Type") or "").strip().lower(),
        record.http_charset or "",
        tuple(http.to_tuples()),
        bytes(reader.read()),
        bool(field("WARC-Truncated")),
    )


def _record(
    piece: _Payload, page: HtmlPage | str, file: str, least: int, rules: HostRules | None
) -> Record | RecordFault:
    response = piece.response
    if isinstance(page, str):
        return RecordFault(file, piece.place, page, sample(response.url))
    if len(page.text.strip()) < least:
        return RecordFault(file, piece.place, "no_text", sample(response.url))
    signals = (*header_signals(response.headers), *page.signals)
    opt_out, fetched = page_opt_out(response.url, signals, response.fetched, rules)
    return Record(
        page.text,
        file,
        piece.place,
        url=response.url,
        fallback=page.fallback,
        opt_out=encodable(opt_out),
        opt_out_fetched=fetched,
    )


def payload(headers: Iterable[tuple[str, str]], body: bytes, truncated: bool = False) -> bytes | str:
    """Decoded payload of a response, or the fault's reason.

    Crawlers often store what they have decoded with the headers as they came: a body that does not begin as its
    encoding does is taken as it is. What breaks off half-way is a fault, unless the crawler declared it (`truncated`).
    """
    encodings: list[str] = []
    chunked = False
    for name, value in headers:
        if name.lower() == "content-encoding":
            encodings += [word.strip().lower() for word in value.split(",")]
        elif name.lower() == "transfer-encoding":
            chunked = chunked or "chunked" in value.lower()
    data = body
    for encoding in (["chunked"] if chunked else []) + encodings[::-1]:
        decoded, whole = _decoded(encoding, data)
        if len(decoded) > MAX_BLOCK_BYTES:
            return "warc_too_large"
        if not whole and not truncated:
            return "warc_bad_payload"
        data = decoded
    return data


def _decoded(encoding: str, data: bytes) -> tuple[bytes, bool]:
    """Bytes with one encoding removed, and whether they are complete."""
    if encoding in ("gzip", "x-gzip"):
        return _inflated(data, 31) if data.startswith(b"\x1f\x8b") else (data, True)
    if encoding == "deflate":
        decoded, whole = _inflated(data, 15)
        if not decoded:  # many servers leave zlib's header out
            decoded, whole = _inflated(data, -15)
        return (decoded, whole) if decoded else _as_stored(data)
    if encoding == "chunked":
        return _unchunked(data) if _CHUNK.match(data) else (data, True)
    if encoding == "br":
        from fastwarc.stream_io import BrotliReader

        decoded, whole = _read_all(BrotliReader(io.BytesIO(data)))
        return (decoded, whole) if decoded else _as_stored(data)
    if encoding == "zstd" and data.startswith(b"\x28\xb5\x2f\xfd"):
        return _unzstd(data)
    return data, True


def _unchunked(data: bytes) -> tuple[bytes, bool]:
    """The chunks of a body (RFC 9112), and whether they are complete.

    Extensions and trailers are passed over. A body that ends behind a chunk counts as complete.
    """
    out, at = bytearray(), 0
    while found := _CHUNK.match(data, at):
        size, at = int(found[1], 16), found.end()
        out += data[at : at + size]
        end = at + size
        if size and data[end : end + 2] != b"\r\n":
            return bytes(out), False
        if not size:
            return bytes(out), True
        at = end + 2
    return bytes(out), at == len(data)


def _as_stored(data: bytes) -> tuple[bytes, bool]:
    """A body without the claimed encoding: plain text, or damaged."""
    is_text = not data[:1024].translate(None, bytes(range(32, 256)) + b"\t\n\f\r")
    return (data, True) if is_text else (b"", False)


def _inflated(data: bytes, window: int) -> tuple[bytes, bool]:
    inflater = zlib.decompressobj(window)
    try:
        return inflater.decompress(data, MAX_BLOCK_BYTES + 1), inflater.eof
    except zlib.error:
        return b"", False


def _unzstd(data: bytes) -> tuple[bytes, bool]:
    import zstandard

    frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    out = bytearray()
    try:
        for start in range(0, len(data), 1 << 12):  # a call's output has no bound, so its input is small
            out += frame.decompress(data[start : start + (1 << 12)])
            if frame.eof or len(out) > MAX_BLOCK_BYTES:
                return bytes(out), True
    except zstandard.ZstdError:
        pass
    return bytes(out), False


def _read_all(reader: Any) -> tuple[bytes, bool]:
    out = bytearray()
    try:
        while len(out) <= MAX_BLOCK_BYTES:
            piece = reader.read(1 << 18)
            if not piece:
                return bytes(out), True
            out += piece
    except Exception:  # fastwarc's and zstandard's own types for damage have no common parent but this
        return bytes(out), False
    return bytes(out), True


def host_files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """The robots.txt, ai.txt and tdmrep.json of hosts in a file.

    Each comes as its URL, the time at which it was read, and its body.

    They are a WARC's responses of status 200, and of 4xx as empty files (RFC 9309: nothing is forbidden then); or JSON
    Lines of `{"url", "fetched", "body"}`, where other lines are ignored.

    Raises:
        MissingInput: the file cannot be opened, or is torn.
        ConfigError: it is neither.
    """
    if plain_name(path.name).endswith(".warc"):
        yield from _host_files_of_warc(path)
    elif plain_name(path.name).endswith((".jsonl", ".json")):
        yield from _host_files_of_jsonl(path)
    else:
        raise ConfigError(f"{path}: what hosts say is read from .warc and .jsonl only, also packed.")


def _host_files_of_jsonl(path: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        for line in lines(blocks(path)):
            try:
                row = json.loads(line)
                url, fetched, body = (row[name] for name in ("url", "fetched", "body"))
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if isinstance(url, str) and isinstance(fetched, str) and isinstance(body, str) and is_host_file(url):
                yield url, fetched, body.encode("utf-8", "replace")
    except TornStream as error:
        raise MissingInput(
            f"{path}: what hosts say cannot be read to its end ({error.reason}). Fetch it again."
        ) from error


def _host_files_of_warc(path: Path) -> Iterator[tuple[str, str, bytes]]:
    for raw in raw_records(path):
        if not isinstance(raw, RawRecord) or raw.cut or not _HOST_FILE.search(raw.data[: 1 << 13]):
            continue
        found = _response(raw)
        if not isinstance(found, _Response) or not is_host_file(found.url):
            continue
        if found.status == 200 or found.status // 100 == 4:
            body = payload(found.headers, found.body, found.truncated) if found.status == 200 else b""
            if isinstance(body, bytes):
                yield found.url, found.fetched, body


@lru_cache(maxsize=1)
def load_host_rules(paths: tuple[Path, ...]) -> HostRules:
    """Rules of all hosts, from the latest version of each file."""
    return host_rules(file for path in paths for file in host_files(path))

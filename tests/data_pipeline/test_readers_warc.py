"""Web archives: every whole record is read, whatever the damage to others, and damage is reported with its byte."""

import base64
import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import zlib
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from fastwarc.stream_io import BrotliWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.readers import warc_stream
from data_pipeline.readers.record import Record, RecordFault
from data_pipeline.readers.sources import WarcSource
from data_pipeline.readers.warc import host_files, load_host_rules, payload, read_warc
from data_pipeline.readers.warc_stream import MAX_BLOCK_BYTES, RawRecord, TornRecord, raw_records
from governance.errors import ConfigError, MissingInput
from tests.data_pipeline.test_readers_bombs import lz4_frame

SOURCE = WarcSource(type="warc", name="web", licence="CC0-1.0", paths=("x.warc",))
HTML = "text/html; charset=utf-8"


def warc(block, kind="response", fields="", digest=True, version="1.1"):
    """One record as bytes; `fields` are further header lines."""
    lines = [f"WARC/{version}", f"WARC-Type: {kind}", "WARC-Record-ID: <urn:uuid:0>", "WARC-Date: 2024-05-01T12:00:00Z"]
    if kind != "warcinfo" and "WARC-Target-URI" not in fields:
        lines.append("WARC-Target-URI: https://h.example/a")
    if digest:
        lines.append("WARC-Block-Digest: sha1:" + base64.b32encode(hashlib.sha1(block).digest()).decode())
    if fields:
        lines.append(fields)
    lines += ["Content-Type: application/http; msgtype=response", f"Content-Length: {len(block)}", "", ""]
    return "\r\n".join(lines).encode() + block + b"\r\n\r\n"


def http(body, media_type=HTML, headers="", status=200):
    more = f"{headers}\r\n" if headers else ""
    return f"HTTP/1.1 {status} OK\r\nContent-Type: {media_type}\r\n{more}\r\n".encode() + body


def page(number):
    return f"<title>{number}</title><p>Text of page {number}, which says one thing and then says another.".encode()


def pages(count):
    return [warc(http(page(i)), fields=f"WARC-Target-URI: https://h.example/{i}") for i in range(count)]


def read(tmp_path, data, name="x.warc", **more):
    path = tmp_path / name
    path.write_bytes(data)
    return list(read_warc(path, name, SOURCE, **more))


def only(tmp_path, data, **more):
    (piece,) = read(tmp_path, data, **more)
    return piece


def offsets(parts):
    return [sum(map(len, parts[:index])) for index in range(len(parts))]


ENDINGS = {"plain": "", "gzip": ".gz", "zstd": ".zst"}


def squeezed(records, way):
    """The members of a file that holds these records, packed this way."""
    if way == "plain":
        return records
    return [gzip.compress(r) if way == "gzip" else zstandard.compress(r) for r in records]


# --- whole files


def plain_members(parts):
    """Members of a gzip file: a record, several, none, a long or a short one, padding, nonsense, or a damaged one."""
    record = warc(http(page(len(parts))))
    kinds = {
        "record": gzip.compress(record),
        "named": b"\x1f\x8b\x08\x08" + bytes(6) + b"name\0" + gzip.compress(record)[10:],
        "two": gzip.compress(record + record),
        "long": gzip.compress(warc(bytes(3000) + random.Random(1).randbytes(3000))),
        "short": gzip.compress(b"WARC/1.0\r\nContent-Length: 0\r\n\r\n\r\n\r\n"),
        "more": gzip.compress(record + b"more"),
        "wrong_length": gzip.compress(record.replace(b"Content-Length: ", b"Content-Length: 1")),
        "headless": gzip.compress(b"x" * 700),
        "empty": gzip.compress(b""),
        "padding": bytes(9),
        "nonsense": b"nonsense",
        "other_sum": gzip.compress(record)[:-8] + bytes(8),
        "cut": gzip.compress(record)[:-20],
    }
    return b"".join(list(kinds.values())[part] for part in parts)


@settings(max_examples=150)
@given(st.lists(st.just(0) | st.integers(0, 12), max_size=12))
def test_members_read_in_one_stream_are_as_each_by_itself(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("members") / "x.warc.gz"
    path.write_bytes(plain_members(parts))
    found = list(raw_records(path))
    with path.open("rb") as source:
        assert found == list(warc_stream._of_members(source, warc_stream._gunzip, b"\x1f\x8b\x08"))


def test_whole_members_are_read_in_one_stream_up_to_the_last(tmp_path):
    path = tmp_path / "x.warc.gz"
    members = squeezed(pages(9), "gzip")
    path.write_bytes(b"".join(members))
    with path.open("rb") as source:
        found = list(warc_stream._whole_members(source, len(members[0])))
    assert [record.place for record in found] == offsets(members)[1:-1]


@pytest.mark.parametrize("bad", [b"Content-Length: 900000\r\n\r\nshort", b"X: " + b"a" * 60_000])
def test_members_that_are_unpacked_in_vain_are_soon_read_alone(tmp_path, monkeypatch, bad):
    """Each would have up to a megabyte of those behind it unpacked again."""
    path, tried, shortcut = tmp_path / "x.warc.gz", [], warc_stream._whole_members
    bad_member, good = gzip.compress(b"WARC/1.1\r\n" + bad), squeezed(pages(300), "gzip")
    members = [*[bad_member] * 400, *good]
    path.write_bytes(b"".join(members))

    def counted(source, offset):
        tried.append(offset)
        return (yield from shortcut(source, offset))

    monkeypatch.setattr(warc_stream, "_whole_members", counted)
    found = list(raw_records(path))
    assert [record.place for record in found] == offsets(members)
    assert [type(record) for record in found] == [TornRecord] * 400 + [RawRecord] * 300
    assert len(tried) < 20


@pytest.mark.parametrize("way", ["plain", "gzip", "zstd"])
def test_records_are_at_the_byte_where_they_begin(tmp_path, way):
    members = squeezed(pages(5), way)
    found = read(tmp_path, b"".join(members), "x.warc.gz" if way == "gzip" else "x.warc")
    assert [piece.position for piece in found] == offsets(members)
    assert [piece.url for piece in found] == [f"https://h.example/{i}" for i in range(5)]
    assert all(f"page {i}," in piece.text for i, piece in enumerate(found))
    assert {(piece.opt_out, piece.opt_out_fetched) for piece in found} == {("none", "2024-05-01T12:00:00Z")}


def test_a_file_that_is_one_gzip_member_has_a_place_for_each_record(tmp_path):
    found = read(tmp_path, gzip.compress(b"".join(pages(4))))
    assert [piece.position for piece in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", [".xz", ".bz2", ".lz4"])
def test_an_archive_in_one_stream_is_read_up_to_its_damage(tmp_path, ending):
    whole = b"".join(warc(http(page(i) + random.Random(i).randbytes(20_000).hex().encode())) for i in range(4))
    pack = {".xz": lzma.compress, ".bz2": bz2.compress, ".lz4": lz4_frame}[ending]
    found = read(tmp_path, pack(whole), f"x.warc{ending}")
    assert [piece.position for piece in found] == [0, 1, 2, 3]
    packed = pack(whole)
    *records, fault = read(tmp_path, packed[: len(packed) * 2 // 3], f"x.warc{ending}")
    assert [piece.position for piece in records] == [*range(len(records))]
    assert (ending != ".bz2") <= len(records) < 4, "of bzip2 whole blocks of 900 kB only"
    assert fault.reason == "warc_torn_record"


def test_zero_padding_and_older_versions_are_read(tmp_path):
    old = warc(http(page(1)), version="1.0")
    found = read(tmp_path, gzip.compress(old) + bytes(100) + gzip.compress(old))
    assert len(found) == 2
    assert found[1].position == len(gzip.compress(old)) + 100


def test_a_zstd_dictionary_in_front_is_used(tmp_path):
    dictionary = zstandard.train_dictionary(4096, [page(i) * 5 for i in range(300)])
    head = b"".join((0x184D2A5D.to_bytes(4, "little"), len(dictionary.as_bytes()).to_bytes(4, "little")))
    packed = [zstandard.ZstdCompressor(dict_data=dictionary).compress(record) for record in pages(3)]
    found = read(tmp_path, head + dictionary.as_bytes() + b"".join(packed))
    assert ["page" in piece.text for piece in found] == [True] * 3


def test_records_that_are_not_pages_are_skipped_and_counted(tmp_path):
    records = [
        warc(b"software: x\r\n", "warcinfo"),
        warc(b"GET / HTTP/1.1\r\n\r\n", "request"),
        warc(http(page(0))),
        warc(http(b"", status=404)),
        warc(http(b"\x89PNG", "image/png")),
        warc(b"", "revisit"),
        warc(b"20240501120000\nh.example. 300 IN A 192.0.2.1\n", fields="WARC-Target-URI: dns:h.example"),
        warc(b"", fields="WARC-Target-URI: <ftp://h.example/a.txt>"),
    ]
    passed = Counter()
    (record,) = read(tmp_path, b"".join(map(gzip.compress, records)), passed=passed)
    assert "page 0" in record.text
    assert passed == {"not_a_response": 3, "not_http": 2, "status_not_200": 1, "other_content_type": 1}


def test_plain_text_is_taken_whole_and_pages_without_text_are_quarantined(tmp_path):
    assert only(tmp_path, warc(http("a  b\nc é".encode("latin-1"), "text/plain; charset=latin-1"))).text == "a  b\nc é"
    assert only(tmp_path, warc(http(b"<script>x</script>"))).reason == "no_text"


# --- damage


@settings(max_examples=150)
@given(st.sampled_from(["plain", "gzip", "zstd"]), st.data())
def test_cut_anywhere_all_before_is_read_and_the_cut_record_is_reported(tmp_path_factory, way, data):
    members = squeezed(pages(4), way)
    whole = b"".join(members)
    cut = data.draw(st.integers(1, len(whole)))
    path = tmp_path_factory.mktemp("cut") / "x.warc"
    path.write_bytes(whole[:cut])
    begins = offsets(members)
    ends = [begin + len(member) for begin, member in zip(begins, members, strict=True)]
    if way == "plain":
        ends = [end - len(b"\r\n\r\n") for end in ends]  # its block is whole then
    found = [(type(piece), piece.place) for piece in raw_records(path)]
    expected = [(RawRecord, begin) for begin, end in zip(begins, ends, strict=True) if end <= cut]
    if way != "plain" or not any(end <= cut <= end + 4 for end in ends):
        expected += [(TornRecord, begin) for begin, end in zip(begins, ends, strict=True) if begin < cut < end]
    assert found == expected


@settings(max_examples=100)
@given(st.sampled_from(["plain", "gzip", "zstd"]), st.integers(0, 3), st.data())
def test_whatever_bytes_of_one_record_change_the_others_are_read(tmp_path_factory, way, victim, data):
    records = [warc(http(page(i))) for i in range(4)]
    members = squeezed(records, way)
    where = data.draw(st.integers(0, len(members[victim]) - 1))
    size = data.draw(st.integers(1, 8))
    broken = bytearray(members[victim])
    broken[where : where + size] = data.draw(st.binary(min_size=size, max_size=size))
    path = tmp_path_factory.mktemp("hurt") / f"x.warc{ENDINGS[way]}"
    path.write_bytes(b"".join([*members[:victim], bytes(broken), *members[victim + 1 :]]))
    found = {piece.text for piece in read_warc(path, "x", SOURCE) if isinstance(piece, Record)}
    output = [piece for piece in raw_records(path) if isinstance(piece, TornRecord)]
    for i in range(4):
        lost = not any(f"page {i}," in text for text in found)
        assert not lost or i == victim or (way == "plain" and output and i == victim + 1)


def test_a_torn_member_in_the_middle_costs_only_itself(tmp_path):
    members = squeezed(pages(5), "gzip")
    members[2] = members[2][:-40]
    found = read(tmp_path, b"".join(members))
    assert [getattr(piece, "reason", "") for piece in found] == ["", "", "warc_torn_record", "", ""]
    assert [piece.position for piece in found] == offsets(members)


@pytest.mark.parametrize("kept", [5, 120, 300, 380])
def test_a_plain_record_cut_in_the_middle_of_a_file_does_not_swallow_the_next(tmp_path, kept):
    records = pages(4)
    records[1] = records[1][:kept]
    found = read(tmp_path, b"".join(records))
    assert [piece.url for piece in found if isinstance(piece, Record)] == [f"https://h.example/{i}" for i in (0, 2, 3)]
    faults = [piece for piece in found if isinstance(piece, RecordFault)]
    assert [fault.position for fault in faults] == [len(records[0])]
    assert faults[0].reason in ("warc_torn_record", "warc_bad_header")


def test_a_block_that_its_digest_denies_is_quarantined(tmp_path):
    bad = pages(1)[0].replace(b"says one thing", b"says 1 thingg ")
    found = read(tmp_path, bad + pages(1)[0])
    assert [getattr(piece, "reason", "") for piece in found] == ["warc_digest_mismatch", ""]
    assert isinstance(only(tmp_path, warc(http(page(0)), digest=False)), Record)


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("encode", [base64.b16encode, base64.b32encode])
def test_digests_are_equal_in_letters_of_any_case_and_however_filled_up(tmp_path, name, encode):
    block = http(page(0))
    bare = warc(block, digest=False)
    digest = encode(hashlib.new(name, block).digest()).decode()
    for form in (digest, digest.lower(), digest.rstrip("=")):
        field = f"WARC-Block-Digest: {name}:{form}\r\n".encode()
        assert isinstance(only(tmp_path, bare.replace(b"Content-Length", field + b"Content-Length", 1)), Record)
    other = field.replace(form.encode(), form[::-1].encode())
    assert (
        only(tmp_path, bare.replace(b"Content-Length", other + b"Content-Length", 1)).reason == "warc_digest_mismatch"
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"WARC/1.1\r\nWARC-Type: response\r\n\r\nx\r\n\r\n", "warc_bad_header"),
        (b"WARC/1.1\r\nContent-Length: -5\r\n\r\n", "warc_bad_header"),
        (b"no WARC at all\r\n", "warc_bad_header"),
        (gzip.compress(b"no WARC at all\r\n", mtime=0), "warc_bad_header"),
        (warc(b"not HTTP"), "warc_bad_http"),
        (warc(b""), "warc_bad_http"),
    ],
)
def test_nonsense_is_reported(tmp_path, data, reason):
    found = read(tmp_path, data + b"" if data[:2] == b"\x1f\x8b" else data)
    assert [piece.reason for piece in found] == [reason]


def test_a_length_beyond_the_file_is_a_tear_and_a_huge_block_is_passed_by(tmp_path, monkeypatch):
    long = pages(1)[0].replace(b"Content-Length: ", b"Content-Length: 9999999999")
    found = read(tmp_path, long + b"".join(pages(2)))
    assert [getattr(piece, "reason", "") for piece in found] == ["warc_torn_record", "", ""]
    monkeypatch.setattr("data_pipeline.readers.warc_stream.MAX_BLOCK_BYTES", 200_000)
    image = warc(http(bytes(300_000), "image/png"))
    text = warc(http(b"<p>" + b"x " * 150_000))
    for way in ("plain", "gzip"):
        passed = Counter()
        found = read(tmp_path, b"".join(squeezed([image, text, *pages(1)], way)), passed=passed)
        assert [getattr(piece, "reason", "") for piece in found] == ["warc_too_large", ""]
        assert passed == {"other_content_type": 1}


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "x.warc"
    for front in (b"", b"WARC/1.1\r\n", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18"):
        path.write_bytes(front + data)
        places = [piece.place for piece in raw_records(path)]
        assert len(places) == len(set(places))


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(MissingInput, match="cannot read"):
        list(raw_records(tmp_path / "none.warc"))


# --- payloads


def chunked(body, size=7):
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def brotli(body):
    out = io.BytesIO()
    writer = BrotliWriter(out)
    writer.write(body)
    writer.close()
    return out.getvalue()


def raw_deflate(body):
    squeezer = zlib.compressobj(wbits=-15)
    return squeezer.compress(body) + squeezer.flush()


ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    " Deflate": raw_deflate,
    "br": brotli,
    "zstd": zstandard.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_payloads_are_decoded_and_those_that_were_decoded_before_are_left(encoding, in_chunks):
    body = page(0) * 50
    encoded = ENCODERS[encoding](body)
    headers = [("Content-Encoding", encoding)] + ([("Transfer-Encoding", "chunked")] if in_chunks else [])
    assert payload(headers, chunked(encoded) if in_chunks else encoded) == body
    assert payload(headers, body) == body
    if encoding != "identity":
        assert payload(headers[:1], encoded[:-12]) == "warc_bad_payload"
        assert body.startswith(payload(headers[:1], encoded[:-12], truncated=True))


@given(body=st.binary(min_size=1, max_size=300), size=st.integers(1, 300), zeros=st.integers(0, 9), data=st.data())
def test_chunks_of_every_form_are_joined_and_a_cut_one_is_damage(body, size, zeros, data):
    """Extensions and trailers (RFC 9112, 7.1), and servers that fill the size with blanks or zeros."""
    extra = data.draw(st.sampled_from([b"", b"  ", b";a=b", b' ;q="x y"']))
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%s%x%s\r\n%s\r\n" % (b"0" * zeros, len(piece), extra, piece) for piece in pieces)
    end = data.draw(st.sampled_from([b"", b"0\r\n\r\n", b"0;a=b\r\n\r\n", b"000\r\nServer-Timing: x\r\nA: b\r\n\r\n"]))
    headers = [("Transfer-Encoding", "chunked")]
    assert payload(headers, chunks + end) == body
    cut = data.draw(st.integers(len(chunks) - len(pieces[-1]) - 2, len(chunks) - 1))
    assert payload(headers, chunks[:cut]) == "warc_bad_payload"
    assert payload(headers, chunks[:cut], truncated=True) == body[: min(len(body), len(body) - (len(chunks) - 2 - cut))]


def test_two_encodings_are_taken_off_in_turn():
    assert payload([("content-encoding", "gzip, br")], brotli(gzip.compress(b"text"))) == b"text"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_is_refused_within_bounded_memory(encoding):
    squeezed = ENCODERS[encoding](bytes(MAX_BLOCK_BYTES + 1))
    assert len(squeezed) < 100_000
    assert payload([("Content-Encoding", encoding)], squeezed) == "warc_too_large"


# --- opt-out


def host_file(path, body, date="2024-04-01T00:00:00Z", status=200):
    block = http(body.encode(), "text/plain", status=status)
    record = warc(block, fields=f"WARC-Target-URI: https://H.example{path}")
    return gzip.compress(record.replace(b"2024-05-01T12:00:00Z", date.encode()))


def test_signals_of_headers_elements_and_hosts_come_with_their_date(tmp_path):
    elements = b'<meta name="tdm-reservation" content="1"><meta content="https://h.example/p p" name=tdm-policy>'
    data = warc(http(elements + page(0), headers="X-Robots-Tag: noai, noimageai"))
    record = only(tmp_path, data)
    assert record.opt_out == "robots:noai robots:noimageai tdm-policy:https://h.example/p%20p tdm:reserved"
    assert record.opt_out_fetched == "2024-05-01T12:00:00Z"
    hosts = tmp_path / "robots.warc.gz"
    old = host_file("/robots.txt", "User-agent: *\nDisallow: /", "2024-01-01T00:00:00Z")
    new = host_file("/robots.txt", "User-agent: GPTBot\nUser-agent: CCBot\nDisallow: /a")
    ai = host_file("/ai.txt", "User-Agent: *\nDisallow: *.html\n")
    hosts.write_bytes(new + ai + old + gzip.compress(warc(http(page(0)))))
    rules = load_host_rules((hosts,))
    record = only(tmp_path, warc(http(page(0))), rules=rules)
    assert record.opt_out == "ai.txt:disallowed robots.txt:CCBot robots.txt:GPTBot"
    assert record.opt_out_fetched == "2024-04-01T00:00:00Z"


def test_hosts_speak_in_json_lines_too_and_a_missing_robots_forbids_nothing(tmp_path):
    path = tmp_path / "hosts.jsonl"
    path.write_text(
        '{"url": "https://h.example/.well-known/tdmrep.json", "fetched": "2024-02-02", '
        '"body": "[{\\"location\\": \\"/\\", \\"tdm-reservation\\": 1}]"}\nnonsense\n{"url": 1}\n[]\n',
        encoding="utf-8",
    )
    record = only(tmp_path, warc(http(page(0))), rules=load_host_rules((path,)))
    assert (record.opt_out, record.opt_out_fetched) == ("tdm:reserved", "2024-02-02")
    gone = tmp_path / "gone.warc.gz"
    gone.write_bytes(host_file("/robots.txt", "not found", status=404) + host_file("/ai.txt", "oops", status=500))
    assert [(url, body) for url, _, body in host_files(gone)] == [("https://H.example/robots.txt", b"")]
    torn = tmp_path / "hosts.jsonl.gz"
    torn.write_bytes(gzip.compress(path.read_bytes())[:-10])
    with pytest.raises(MissingInput, match="Fetch it again"):
        list(host_files(torn))
    with pytest.raises(ConfigError, match="only"):
        list(host_files(tmp_path / "hosts.csv"))


# --- planted truth


@pytest.mark.skipif("ASSAY_TEST_DATA" not in os.environ, reason="ASSAY_TEST_DATA is not set")
def test_the_archive_with_truth_is_read_to_the_last_page():
    path = Path(os.environ["ASSAY_TEST_DATA"]) / "web" / "web.warc.gz"
    passed = Counter()
    found = list(read_warc(path, "web.warc.gz", SOURCE, passed=passed))
    assert len([piece for piece in found if isinstance(piece, Record)]) == 1010
    assert Counter(piece.reason for piece in found if isinstance(piece, RecordFault)) == {"no_text": 1}
    assert passed == {"status_not_200": 38, "not_a_response": 29, "other_content_type": 18}
    assert len({piece.position for piece in found}) == len(found)

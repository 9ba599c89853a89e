"""Lines, compressed streams, JSON Lines, CSV, text and HTML: nothing is lost, for any bytes."""

import csv
import gzip
import io
import json
import os
import zlib

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.readers import text
from data_pipeline.readers.file_types.delimited import read_csv
from data_pipeline.readers.record import SAMPLE_CHARACTERS, Fields, Record, RecordFault
from data_pipeline.readers.streams import TornStream, blocks, lines
from data_pipeline.readers.text import read_html, read_jsonl, read_member, read_plain
from governance.errors import MissingInput

FIELDS = Fields("text")


def in_pieces(data, size):
    return [data[start : start + size] for start in range(0, len(data), size)]


def jsonl(data, fields=FIELDS):
    return list(read_jsonl([data], "f", fields))


def only_fault(data, fields=FIELDS):
    (fault,) = jsonl(data, fields)
    assert isinstance(fault, RecordFault)
    return fault


# --- lines


@given(st.binary(max_size=200), st.integers(1, 20))
def test_lines_are_those_of_split_however_the_stream_is_cut(data, size):
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    if expected:
        expected[0] = expected[0].removeprefix(b"\xef\xbb\xbf")
    assert list(lines(in_pieces(data, size))) == expected


def test_a_line_without_end_is_cut_behind_the_bound(monkeypatch):
    monkeypatch.setattr("data_pipeline.readers.streams.MAX_RECORD_BYTES", 10)
    monkeypatch.setattr("data_pipeline.readers.text.MAX_RECORD_BYTES", 10)
    data = b"x" * 100 + b'\n{"text":1}\n'
    assert list(lines(in_pieces(data, 7))) == [b"x" * 11, b'{"text":1}']
    reasons = [piece.reason for piece in read_jsonl(in_pieces(data, 7), "f", FIELDS)]
    assert reasons == ["line_too_long", "text_not_string"]


# --- compressed streams


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def until_tear(path):
    got = []
    try:
        for block in blocks(path):
            got.append(block)
    except TornStream as error:
        return b"".join(got), error.reason
    return b"".join(got), ""


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_whole_streams_of_several_members(tmp_path, ending):
    compress = gzip.compress if ending == ".gz" else zstandard.compress
    parts = [os.urandom(300_000), b"", b"a" * 3_000_000, b"end"]
    path = written(tmp_path, "x" + ending, b"".join(compress(part) for part in parts))
    assert until_tear(path) == (b"".join(parts), "")


def test_zero_padding_behind_a_gzip_member_is_not_a_tear(tmp_path):
    assert until_tear(written(tmp_path, "x.gz", gzip.compress(b"text") + bytes(512))) == (b"text", "")


@settings(max_examples=40)
@given(st.integers(1, 200_000), st.integers(0, 3))
def test_a_truncated_gzip_gives_all_that_zlib_can_decode(tmp_path_factory, size, level):
    data = b"".join(b"%d %d\n" % (i, i * i) for i in range(size // 8))
    whole = gzip.compress(data, level)
    cut = len(whole) * 2 // 3
    path = written(tmp_path_factory.mktemp("gz"), "x.gz", whole[:cut])
    oracle = zlib.decompressobj(31)
    expected = oracle.decompress(whole[:cut]) + oracle.flush()
    assert until_tear(path) == (expected, "truncated_gzip")


def test_nonsense_inside_a_gzip_gives_all_that_was_before_it(tmp_path):
    first = b"".join(b"%d\n" % i for i in range(50_000))
    got, reason = until_tear(written(tmp_path, "x.gz", gzip.compress(first) + b"nonsense"))
    assert (got, reason) == (first, "corrupt_gzip")
    broken = bytearray(gzip.compress(first))
    broken[-8] ^= 1  # the check sum
    assert until_tear(written(tmp_path, "y.gz", bytes(broken))) == (first, "corrupt_gzip")


def test_a_truncated_zstd_gives_whole_blocks_and_says_so(tmp_path):
    data = b"".join(b"%d %d\n" % (i, i * i) for i in range(100_000))
    whole = zstandard.compress(data)
    got, reason = until_tear(written(tmp_path, "x.zst", whole[: len(whole) * 3 // 4]))
    assert reason == "truncated_zstd"
    assert data.startswith(got)
    assert len(got) > len(data) // 2
    assert until_tear(written(tmp_path, "y.zst", b"nonsense"))[1] == "corrupt_zstd"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(MissingInput, match=r"cannot read .*none\.jsonl: No such file"):
        list(blocks(tmp_path / "none.jsonl"))


# --- JSON Lines


def test_faults_of_json_lines_are_at_their_line():
    data = b"\n".join(
        [
            b'{"text": "good"}',
            b"",
            b"{nope",
            b"[1]",
            b'{"other": 1}',
            b'{"text": 5}',
            b'{"text": "\xff"}',
            b'{"text": "\\ud800"}',
            b'{"text": ""}\r',
        ]
    )
    pieces = jsonl(data)
    assert [piece.text for piece in pieces if isinstance(piece, Record)] == ["good", ""]
    assert [(piece.position, piece.reason) for piece in pieces if isinstance(piece, RecordFault)] == [
        (2, "not_json"),
        (3, "not_an_object"),
        (4, "no_text_field"),
        (5, "text_not_string"),
        (6, "not_utf8"),
        (7, "lone_surrogate"),
    ]


def test_hostile_json_is_a_fault_and_no_crash():
    assert only_fault(b"[" * 200_000).reason == "not_json"
    assert only_fault(b'{"text": ' + b"9" * 5000 + b"}").reason == "not_json"
    assert only_fault(b'{"text": null}').reason == "text_not_string"


def test_sample_is_short_and_writable():
    fault = only_fault(b"\xff\xfe" + "ä".encode() * 1000)
    assert len(fault.sample) == SAMPLE_CHARACTERS
    fault.sample.encode("utf-8")


def test_fields_are_taken_where_named():
    fields = Fields("body", "key", "link", "lang", "rights")
    row = {"body": "b", "key": 7, "link": "u", "lang": "de", "rights": "MIT"}
    assert jsonl(json.dumps(row).encode(), fields) == [Record("b", "f", 0, "u", "de", "MIT", "7")]
    assert jsonl(b'{"body": "b", "key": "k", "lang": null}', fields) == [Record("b", "f", 0, id="k")]
    for change, reason in (
        ({"key": None}, "no_id"),
        ({"key": True}, "no_id"),
        ({"key": ""}, "no_id"),
        ({"key": 1.5}, "no_id"),
        ({"link": 3}, "url_not_string"),
        ({"lang": []}, "language_not_string"),
        ({"rights": {}}, "licence_not_string"),
        ({"key": "\ud800"}, "lone_surrogate"),
    ):
        assert only_fault(json.dumps(row | change).encode(), fields).reason == reason


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["\ud800", "é\n\x7f"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(["text", "key", "score", "m"]), VALUES), st.booleans(), st.data())
def test_lines_mean_what_json_says(row, plain, drawn):
    """The quick reader gives what `json` gives of each line, a spoilt one included, to the types of kept values."""
    line = json.dumps(row, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    at = drawn.draw(st.integers(0, len(line)))
    line = (
        line[:at]
        + drawn.draw(st.sampled_from([b"", b'"', b"\\u12", b"1e999", b"NaN", b"-0", b"\xff", b"\0", b"}"]))
        + line[at:]
    )
    fields = [Fields("text"), Fields("text", "key", columns=("score", "m")), Fields("m", messages="chatml")]
    quick = [jsonl(line, each) for each in fields]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "parse_quickly", lambda line: (None, False))
        assert repr(quick) == repr([jsonl(line, each) for each in fields])


@given(st.lists(st.one_of(st.binary(max_size=30), st.builds(lambda t: json.dumps({"text": t}).encode(), st.text()))))
def test_every_line_that_is_not_blank_is_a_record_or_a_fault(rows):
    data = b"\n".join(rows)
    expected = [
        (number, line)
        for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
        if line and not line.isspace()
    ]
    pieces = list(read_jsonl(in_pieces(data, 13), "f", FIELDS))
    assert [piece.position for piece in pieces] == [number for number, _ in expected]
    for piece, (_, line) in zip(pieces, expected, strict=True):
        if isinstance(piece, Record):
            assert piece.text == json.loads(line)["text"]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_tear_is_one_fault_behind_all_whole_lines(tmp_path, ending):
    data = b"".join(json.dumps({"text": f"{i} {os.urandom(20).hex()}"}).encode() + b"\n" for i in range(20_000))
    compress = gzip.compress if ending == ".gz" else zstandard.compress
    path = written(tmp_path, f"x.jsonl{ending}", compress(data)[:-20_000])
    pieces = list(read_jsonl(blocks(path), "x", FIELDS))
    assert [json.loads(line)["text"] for line in data.splitlines()][: len(pieces) - 1] == [p.text for p in pieces[:-1]]
    assert len(pieces) > 10_000
    assert (pieces[-1].reason, pieces[-1].position) == (
        f"truncated_{'gzip' if ending == '.gz' else 'zstd'}",
        len(pieces) - 1,
    )


def test_an_object_that_was_closed_before_the_tear_is_kept():
    def torn():
        yield b'{"text": "a"}\n{"text": "b"}'
        raise TornStream("truncated_gzip")

    first, second, fault = read_jsonl(torn(), "f", FIELDS)
    assert (first.text, second.text, fault.reason, fault.position) == ("a", "b", "truncated_gzip", 2)


# --- CSV


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20), st.integers(1, 50))
def test_csv_round_trip(rows, size):
    # a lone carriage return or surrogate is not text that a CSV writer of UTF-8 leaves unchanged
    rows = [(a.replace("\r", ""), b.replace("\r", "")) for a, b in rows]
    rows = [(a.encode("utf-8", "replace").decode(), b.encode("utf-8", "replace").decode()) for a, b in rows]
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([("link", "text"), *rows])
    pieces = list(read_csv(in_pieces(out.getvalue().encode(), size), "f", Fields("text", url="link")))
    assert [(piece.url, piece.text) for piece in pieces] == rows
    assert [piece.position for piece in pieces] == list(range(len(rows)))


def test_faults_of_csv_are_at_their_row():
    data = b'id,text\n1,good\n2,\xff\n3\n\n4,"two\nlines"\n5,"torn'
    pieces = list(read_csv([data], "f", FIELDS))
    assert [(p.position, p.text) for p in pieces if isinstance(p, Record)] == [(0, "good"), (3, "two\nlines")]
    assert [(p.position, p.reason) for p in pieces if isinstance(p, RecordFault)] == [
        (1, "not_utf8"),
        (2, "wrong_columns"),
        (4, "not_csv"),
    ]


def test_a_csv_without_the_column_has_a_fault_a_row():
    assert [p.reason for p in read_csv([b"a,b\n1,2\n3,4\n"], "f", FIELDS)] == ["no_text_field"] * 2


def test_a_torn_csv_member():
    def torn():
        yield b"text\none\ntw"
        raise TornStream("unreadable_member")

    first, fault = read_csv(torn(), "f", FIELDS)
    assert (first.text, fault.reason, fault.sample) == ("one", "unreadable_member", "tw")


# --- text and HTML


def test_plain_text_is_kept_unchanged():
    assert read_plain(b"\xef\xbb\xbfa\r\nb", "f.txt") == Record("a\r\nb", "f.txt", 0)
    assert read_plain(b"a\xff", "f.txt").reason == "not_utf8"


def test_a_torn_text_is_not_a_document():
    def torn():
        yield b"half"
        raise TornStream("truncated_gzip")

    (fault,) = read_member(torn(), "f.txt.gz", ".txt", FIELDS)
    assert (fault.reason, fault.sample) == ("truncated_gzip", "half")


def page(body, charset="utf-8", declare=True):
    meta = f'<meta charset="{charset}">' if declare else ""
    return f"<html><head>{meta}<title>t</title></head><body>{body}</body></html>".encode(charset)


PROSE = "Die größte Straße führt über Österreich; früher hieß sie anders, und schöner war sie auch. " * 5


@pytest.mark.parametrize(("charset", "declare"), [("utf-8", True), ("utf-8", False), ("iso-8859-1", True)])
def test_html_is_decoded_as_it_says_or_as_it_is(charset, declare):
    record = read_html(page(f"<main><p>{PROSE}</p></main>", charset, declare), "f.html")
    assert PROSE.strip() in record.text
    assert not record.fallback


def test_a_page_without_main_text_gives_all_its_text_and_says_so():
    record = read_html(page("<nav><ul><li>first entry</li></ul></nav>"), "f.html")
    assert record.fallback
    assert "first entry" in record.text


def test_language_of_the_path_fills_what_the_record_leaves_open():
    assert next(read_member([b"x"], "de/f.txt", ".txt", FIELDS, "de")).language == "de"

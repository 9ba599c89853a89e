"""CSV and TSV sources, chats and character references: each row is a document or a fault, with its place."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.documents import QUARANTINE_SCHEMA, read_documents, read_table
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import streams
from data_pipeline.readers.file_types import delimited
from data_pipeline.readers.file_types.character_references import decode_references
from data_pipeline.readers.file_types.chats import messages_text
from data_pipeline.readers.file_types.delimited import Dialect, read_csv
from data_pipeline.readers.record import Fields, Record
from data_pipeline.readers.sources import Source
from governance.config import Section, validate
from governance.errors import ConfigError
from governance.stage import Runtime

TURNS = [{"role": "user", "content": "What is a quine? "}, {"role": "assistant", "content": "A program."}]


class Sources(Section):
    sources: tuple[Source, ...]


def source(**values):
    return validate({"sources": [{"name": "a", "licence": "MIT"} | values]}, Sources, "run.toml").sources[0]


def made(folder, **values):
    """Documents, faults as (position, reason, sample), and counts; records in = documents + quarantined."""
    found = ingest((source(**values),), IngestConfig(), folder, Runtime(folder / "root"))
    documents = list(read_documents(found.files("documents", folder / "root")))
    paths = found.files("quarantine", folder / "root")
    faults = [row for path in paths for row in read_table(path, QUARANTINE_SCHEMA).to_pylist()]
    stats = found.stats
    assert stats["documents_in"] == stats["documents_kept"] + stats["quarantined"] == len(documents) + len(faults)
    return documents, [(row["position"], row["reason"], row["sample"]) for row in faults], stats


# --- tables


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_table_becomes_documents_with_its_columns(tmp_path, kind, packed):
    out = io.StringIO(newline="")
    rows = [("body", "key", "date"), ('one, "two"\nthree\tfour', "k1", "2024-05-01"), ("größer", "k2", "")]
    csv.writer(out, delimiter="," if kind == "csv" else "\t").writerows(rows)
    data = b"\xef\xbb\xbf" + out.getvalue().encode()
    packs = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    (tmp_path / f"x.{kind}{packed}").write_bytes(packs.get(packed, bytes)(data))
    named = {"text_field": "body", "id_field": "key", "columns": ["date"]}
    documents, faults, _ = made(tmp_path, type=kind, paths=[f"x.{kind}{packed}"], **named)
    assert [(d.id, d.text, json.loads(d.columns)) for d in documents] == [
        ("a/k1", 'one, "two"\nthree\tfour', {"date": "2024-05-01"}),
        ("a/k2", "größer", {"date": ""}),
    ]
    assert not faults


def test_rows_that_do_not_fit_are_quarantined_with_their_line(tmp_path):
    (tmp_path / "x.csv").write_bytes(
        b'text,n\n"a\nb",1\n\nshort\nlong,1,2\n\xff,1\ngood,1\n"bad"x,1\nlast,1\n"no end,1\nlost,1\n'
    )
    documents, faults, stats = made(tmp_path, type="csv", paths=["x.csv"])
    assert [(d.position, d.text) for d in documents] == [(0, "a\nb"), (4, "good"), (6, "last")]
    assert [fault[:2] for fault in faults] == [
        (1, "wrong_columns"), (2, "wrong_columns"), (3, "not_utf8"), (5, "not_csv"), (7, "unclosed_quote")
    ]  # fmt: skip
    assert [fault[2].partition(":")[0] for fault in faults] == ["line 5", "line 6", "line 7", "line 9", "line 11"]
    assert stats["torn_files"] == 1, "the rows behind the quotation mark are lost, in an unknown number"


def test_a_quote_without_end_stops_the_reader_at_its_bound(monkeypatch):
    monkeypatch.setattr(delimited, "MAX_RECORD_BYTES", 10_000)
    read = 0

    def pieces():
        nonlocal read
        yield b'text\nwhole\n"'
        for _ in range(1000):
            read += 1
            yield b"x" * 97 + b"\n"

    whole, fault = read_csv(pieces(), "f", Fields("text"), Dialect())
    assert (whole.text, fault.reason, fault.position) == ("whole", "unclosed_quote", 1)
    assert read < 110


@pytest.mark.parametrize("quoted", [False, True])
def test_a_row_above_the_bound_is_refused_whole(monkeypatch, quoted):
    monkeypatch.setattr(delimited, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(streams, "MAX_RECORD_BYTES", 1000)
    quote = b'"' * quoted
    pieces = [b"n,text\n1," + quote, *[b"x" * 100] * 20, quote + b"\n2,ok\n"]
    long, whole = read_csv(pieces, "f", Fields("text"), Dialect())
    assert (long.reason, long.sample.partition(":")[0], whole.text) == ("line_too_long", "line 2", "ok")
    short = read_csv([b"text,n\n", b"x" * 990, b",1234567890123\n"], "f", Fields("text", id="n"), Dialect())
    assert [piece.reason for piece in short] == ["line_too_long"], "a cut id is not an id"


def test_a_malformed_value_is_passed_over_to_its_closing_mark():
    data = b'n,text\n1,"He said "hi" to\nme, friend"\n2,"12" nails"\n3,"a""b\nc"\n4,"bad"x\n5,ok\n'
    pieces = list(read_csv([data], "f", Fields("text"), Dialect()))
    assert [getattr(piece, "text", "") or piece.reason for piece in pieces] == [
        "not_csv", "not_csv", 'a"b\nc', "not_csv", "ok"
    ]  # fmt: skip
    assert [piece.sample.partition(":")[0] for piece in pieces if not isinstance(piece, Record)] == [
        "line 2", "line 4", "line 7"
    ]  # fmt: skip
    pieces = list(read_csv([b'text\n"a "b" c\nd\n'], "f", Fields("text"), Dialect()))
    assert [piece.reason for piece in pieces] == ["not_csv", "unclosed_quote"]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_carriage_returns_alone_end_lines_where_the_header_has_one(size):
    plain = (b"n,text\r", b"n,text\r\n", b"\n\nn,text\n")
    for header in (*plain, b'"a\r\n""b",text\r', b'\xef\xbb\xbf"\r",text\n', b"5'' disk,text\r"):
        data = header + b"".join(row + header[-2 + (header[-2:] != b"\r\n") :] for row in (b"1,a", b"2,b"))
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert [piece.text for piece in read_csv(pieces, "f", Fields("text"), Dialect())] == ["a", "b"]
    (fault,) = read_csv([b"text\nhello\rworld\n"], "f", Fields("text"), Dialect())
    assert (fault.reason, "newline=" in fault.sample) == ("not_csv", False)


def test_a_header_outside_the_encoding_is_shown():
    for encoding, reason in (("cp1252", "wrong_encoding"), ("utf-8", "not_utf8")):
        (fault,) = read_csv([b"id\x81,text\n1,hello\n"], "f", Fields("text"), Dialect(encoding=encoding))
        assert (fault.reason, fault.sample) == (reason, "line 1: id?,text")


def test_truncated_and_odd_tables(tmp_path):
    rows = "text\n" + "".join(f"row {number}\n" for number in range(2000))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(rows.encode())[:-200])
    documents, faults, stats = made(tmp_path, type="csv", paths=["a.csv.gz"])
    assert documents[-1].text == f"row {len(documents) - 1}"
    assert ([fault[1] for fault in faults], stats["torn_files"]) == (["truncated_gzip"], 1)
    for name, content, reasons in (
        ("none", b"", ["empty_file"]),
        ("header", b"text,n\n", ["empty_file"]),
        ("other", b"body\n1\n2\n", ["no_text_field"] * 2),
        ("twice", b"text,text\n1,2\n", ["repeated_column"]),
        ("utf16", "text\nx\n".encode("utf-16"), ["not_utf8"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.csv").write_bytes(content)
        documents, faults, _ = made(folder, type="csv", paths=["x.csv"])
        assert (documents, [fault[1] for fault in faults][: len(reasons)]) == ([], reasons), name


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "windows-1252", "shift_jis"])
def test_another_encoding_is_given_by_a_field(tmp_path, encoding):
    text = "größer" if encoding != "shift_jis" else "日本語"
    (tmp_path / "x.csv").write_bytes(f"n,text\n1,{text}\n2,b\n".encode(encoding))
    documents, faults, _ = made(tmp_path, type="csv", paths=["x.csv"], encoding=encoding)
    assert ([d.text for d in documents], faults) == ([text, "b"], [])


def test_bytes_outside_the_encoding_spoil_their_row(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"text\na\n\x81\xfe\nb\n")
    documents, faults, _ = made(tmp_path, type="csv", paths=["x.csv"], encoding="cp1252")
    assert ([d.text for d in documents], faults[0][1]) == (["a", "b"], "wrong_encoding")


@given(st.lists(st.text("ab\"\t'x ,\n", max_size=12), min_size=1, max_size=12), st.integers(1, 7))
def test_rows_survive_any_cut_of_the_stream(texts, size):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="|", quotechar="'", lineterminator="\n").writerows([[n, t] for n, t in enumerate(texts)])
    data = out.getvalue().encode("utf-16")
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found = read_csv(pieces, "f", Fields("text"), Dialect("|", "'", "utf-16", ("n", "text")))
    assert [piece.text for piece in found if isinstance(piece, Record)] == texts


@given(st.binary(max_size=200), st.sampled_from(["utf-8", "utf-16", "cp1252"]))
def test_any_bytes_are_records_and_faults(data, encoding):
    positions = [
        p.position for p in read_csv([data], "f", Fields("text"), Dialect(encoding=encoding, header=("text",)))
    ]
    assert positions == list(range(len(positions)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"encoding": "klingon"}, "not an encoding that Python knows"),
        ({"encoding": "base64"}, "not an encoding of text"),
        ({"delimiter": ";;"}, "does not match the pattern"),
        ({"delimiter": "'", "quote": "'"}, "delimiter and quote are both"),
        ({"header": ["a", "a"]}, "header names 'a' twice"),
        ({"messages_field": "m", "text_field": "t"}, "both name the text"),
        ({"messages_form": "chatml"}, "no effect without messages_field"),
    ],
)
def test_wrong_fields_are_reported_with_their_fix(values, words):
    with pytest.raises(ConfigError, match=words):
        source(type="csv", paths=["a"], **values)


# --- chats


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_chat_becomes_text_in_the_form_of_the_manifest(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"chat": chat}) + "\n" for chat in (TURNS, [], "no")))
    elif kind == "parquet":
        pq.write_table(pa.table({"chat": [TURNS, [], None]}), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["chat"], [json.dumps(TURNS)], ["[]"], ["no"]])
    for form, text in (
        ("roles", "user: What is a quine?\n\nassistant: A program."),
        ("chatml", "<|im_start|>user\nWhat is a quine? <|im_end|>\n<|im_start|>assistant\nA program.<|im_end|>\n"),
    ):
        documents, faults, _ = made(tmp_path, type=kind, paths=[path.name], messages_field="chat", messages_form=form)
        assert [d.text for d in documents] == [text]
        assert [fault[1] for fault in faults] == ["not_messages"] * 2


def test_messages_of_parts_and_of_other_names():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_text([{"role": "user", "content": parts}], "roles") == "user: ab"
    assert messages_text([{"from": "human", "value": "x"}], "roles") == "human: x"
    for wrong in (["x"], [{"role": "user"}], [{"content": "x"}], [{"role": 1, "content": "x"}], 3,
                  [{"role": "user", "content": [*parts, {"type": "image_url"}]}]):  # fmt: skip
        assert messages_text(wrong, "roles") is None


# --- character references


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("Tom &amp; Jerry&#39;s caf&eacute;&#x2014;now", "Tom & Jerry's café\u2014now"),
        ("for p &lt; .05 and a&nbsp;b", "for p < .05 and a\u00a0b"),
        ("&foo; AT&T; &copy=1 &#0; &#xd800; &#128512;", "&foo; AT&T; &copy=1 &#0; &#xd800; \U0001f600"),
        ("plain", "plain"),
    ],
)
def test_references_in_prose_are_decoded(text, decoded):
    assert decode_references(text)[0] == decoded


@pytest.mark.parametrize(
    "text",
    [
        "Write &nbsp; in HTML for a blank",
        "The entity &eacute; is é",
        "Use `&amp;` or '&lt;'",
        "<p>Tom &amp; Jerry</p>",
        "&lt;br&gt; ends a line",
        "&amp;nbsp; was escaped twice",
        "A &amp; B;\nb\nc\nd\ne",
        "int main() {\n  char *s = &quot;;\n  return 0;\n}",
    ],
)
def test_code_and_texts_about_html_stay(text):
    assert decode_references(text) == (text, True)


@given(st.text("&;#x3amplt<>`{} \n", max_size=40))
def test_decoding_changes_references_only_and_once(text):
    once, _ = decode_references(text)
    assert decode_references(once)[0] == once or "&" in once
    if "&" not in text:
        assert once == text


def test_decoded_documents_are_counted_and_pages_are_left_alone(tmp_path):
    texts = ["Tom &amp; Jerry", "HTML has &amp;", "plain"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    documents, _, stats = made(tmp_path, type="jsonl", paths=["x.jsonl"], decode_entities=True)
    assert [d.text for d in documents] == ["Tom & Jerry", "HTML has &amp;", "plain"]
    assert (stats["entities_decoded"], stats["entities_left"]) == (1, 1)
    documents, _, stats = made(tmp_path, type="jsonl", paths=["x.jsonl"])
    assert ([d.text for d in documents], "entities_decoded" in stats) == (texts, False)
    (tmp_path / "a.txt").write_text("Tom &amp; Jerry")
    (tmp_path / "b.html").write_text(
        "<body><main><p>" + "Write &amp;amp; for an ampersand. " * 20 + "</p></main></body>"
    )
    documents, _, _ = made(tmp_path, type="text", paths=["a.txt", "b.html"], decode_entities=True)
    assert [d.text[:11] for d in documents] == ["Tom & Jerry", "Write &amp;"]

"""`assay inspect`: forms of CSV and TSV files, names of fields, output that is closed early, a full disk."""

import csv
import errno
import gzip
import io
import itertools
import json
import os
import re
import sys
import tomllib

import pyarrow as pa
import pyarrow.parquet
import pytest

from assay.cli import inspect_commands
from assay.cli.surface import parser
from assay.inspect import inspection, sampling
from assay.inspect.formats import fields_of, find_inputs, first_records
from assay.inspect.inspection import inspect_path
from assay.inspect.inspection_page import Inspection, InspectTable, as_page, as_text
from assay.inspect.sampling import sample_files
from governance.errors import MissingInput, StorageError, storage_errors
from tests.assay.inspected import prose


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "form"),
    [
        ("a.csv", ",", "utf-8", {}),
        ("a.csv", ";", "utf-8-sig", {"delimiter": ";"}),
        ("a.csv", "\t", "utf-16", {"delimiter": "\t", "encoding": "utf-16"}),
        ("a.tsv.gz", "\t", "utf-16-le", {"encoding": "utf-16-le"}),
        ("a.csv", ",", "utf-16-be", {"encoding": "utf-16-be"}),
        ("a.csv.gz", ";", "windows-1252", {"delimiter": ";", "encoding": "windows-1252"}),
        ("a.tsv", "\t", "utf-8", {}),
        ("a.tsv", "|", "utf-8", {"delimiter": "|"}),
    ],
)
def test_the_form_of_a_table_is_found_and_read(tmp_path, name, delimiter, encoding, form):
    out = io.StringIO()
    table = csv.writer(out, delimiter=delimiter)
    table.writerows([["Nr", "Größe, grob", "Meldung"], *([n, "1,5", f"Öl; {prose(n)}\nund mehr"] for n in range(40))])
    data = out.getvalue().encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    result = inspect_path(tmp_path)
    [source] = tomllib.loads(result.proposal)["data"]["sources"]
    assert (source["text_field"], {key: source[key] for key in ("delimiter", "encoding") if key in source}) == (
        "Meldung", form,
    )  # fmt: skip
    assert ("is a guess" in result.proposal) == (encoding == "windows-1252")
    funnel = next(table for table in result.tables if table.title.startswith("Funnel"))
    assert funnel.rows[0][1:3] == (40, 40)


def test_a_table_of_one_column_or_of_damaged_rows_keeps_the_usual_form(tmp_path):
    (tmp_path / "one.csv").write_text("text\n" + "".join(f'"{prose(n)}; and; so"\n' for n in range(20)))
    (tmp_path / "odd.csv").write_text("a;b\n" + "no such row\n" * 20)
    for name in ("one.csv", "odd.csv"):
        [found] = find_inputs(tmp_path / name)[0]
        assert found.form == {}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_chat_is_read_as_one_also_as_json_and_beside_its_prompt(tmp_path, name):
    chats = [[{"role": "user", "content": prose(n, 1)}, {"role": "assistant", "content": prose(n)}] for n in range(40)]
    rows = [(n, chat[0]["content"], chat) for n, chat in enumerate(chats)]
    out = io.StringIO()
    if name == "a.jsonl":
        out.writelines(json.dumps({"prompt": prompt, "messages": chat}) + "\n" for _, prompt, chat in rows)
    else:
        table = csv.writer(out, delimiter="," if name == "a.csv" else "\t")
        table.writerows([["nr", "prompt", "messages"], *((n, prompt, json.dumps(chat)) for n, prompt, chat in rows)])
    (tmp_path / name).write_text(out.getvalue())
    [source] = tomllib.loads(inspect_path(tmp_path).proposal)["data"]["sources"]
    assert source["messages_field"] == "messages"
    assert "text_field" not in source


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_long_documents_of_a_table_are_its_text_whatever_ends_its_lines(tmp_path, ends):
    """Python's reader takes at most 128 Ki characters of a value by default."""
    rows = "".join(f'{n},"{n} {"word " * 30_000}"{ends}' for n in range(3))
    (tmp_path / "a.csv").write_bytes(f"{ends}id,body{ends}{rows}".encode())
    before = csv.field_size_limit(1 << 17)
    try:
        [found] = find_inputs(tmp_path)[0]
        assert fields_of(found)["text"] == "body"
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_values_that_python_has_no_type_for_hide_no_text(tmp_path, kind):
    texts = pa.array([prose(1).encode(), b"\xff\xfe", prose(2).encode()], pa.binary())
    table = pa.table(
        {
            "zone": pa.array([1, 2, 3], pa.timestamp("us", tz="Nowhere/Land")),
            "year": pa.array([1 << 60] * 3, pa.timestamp("s")),
            "bytes": texts,
            "body": pa.array([text.as_py() + b"." for text in texts], pa.binary()).view(pa.string()),
        }
    )
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(table.drop(["year"]), path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
            out.write_table(table)
    [found] = find_inputs(tmp_path)[0]
    assert fields_of(found)["text"] == "body"
    assert [row["bytes"] for row in first_records(found)] == [prose(1), None, prose(2)]


@pytest.mark.parametrize("deep", ["[", "{a: ", "- "])
def test_hostile_facts_of_a_data_set_state_nothing(tmp_path, deep):
    (tmp_path / "README.md").write_text(f"---\nlicense: {deep * 3000}")
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text('{"_data_files": ' + "[" * 100_000)
    (tmp_path / "a.txt").write_text(prose(1))
    (tmp_path / "b").mkdir()
    doubled = "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijklmnopqrst"))
    (tmp_path / "b" / "README.md").write_text(f"---\na: &a [x, x]\n{doubled}license: *t\n---\n")
    (tmp_path / "b" / "a.txt").write_text(prose(1))
    assert {found.licence for found in find_inputs(tmp_path)[0]} == {"NOASSERTION"}


def test_the_files_are_written_where_a_reader_closes_the_output(tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return descriptor

    descriptor = os.open(os.devnull, os.O_WRONLY)
    (tmp_path / "a.txt").write_text(prose(1))
    monkeypatch.setattr(sys, "stdout", Closed())
    arguments = parser().parse_args(["inspect", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out")])
    with pytest.raises(BrokenPipeError):
        inspect_commands.inspect(arguments)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"inspection.html", "run.toml"}


@pytest.mark.parametrize("name", ["Lizenz", "licencia", "License", "лицензия", "许可证"])
def test_the_licence_field_is_known_in_other_languages_and_letters(tmp_path, name):
    lines = [{"ID": n, "Text": prose(n), name: "CC-BY-4.0"} for n in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = inspect_path(tmp_path)
    [licences] = [table for table in result.tables if table.title == "Licences"]
    assert ("CC-BY-4.0", 6, "100.0 %") in licences.rows
    [source] = tomllib.loads(result.proposal)["data"]["sources"]
    assert (source["text_field"], source["id_field"], source["licence_field"]) == ("Text", "ID", name)


def test_a_full_disk_names_tmpdir(tmp_path, monkeypatch):
    def full(*given):
        with storage_errors(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(inspection, "ingest", full)
    (tmp_path / "a.txt").write_text(prose(1))
    with pytest.raises(StorageError, match=r"No space left on device.*Set TMPDIR to a folder with room") as caught:
        inspect_path(tmp_path)
    assert "--root" not in str(caught.value)


def test_shares_align_as_numbers_and_names_are_not_broken(tmp_path):
    rows = (("too_few_words", 5, "1.0 %"), ("clean", 11, "12.0 %"))
    shown = Inspection(tmp_path, "", (InspectTable("Removed", ("reason", "documents", "share"), rows),), "")
    assert as_text(shown).splitlines()[-2:] == [
        "  too_few_words          5   1.0 %",
        "  clean                 11  12.0 %",
    ]
    page = str(as_page(shown))
    assert page.count('<td class="n">') == 4
    assert "<code>too_few_words</code>" in page
    long = InspectTable("Worst", ("reason", "evidence"), (("x", "a_share=0.5"),))
    assert "<td>a_<wbr>share=<wbr>0.5</td>" in as_page(Inspection(tmp_path, "", (long,), ""))  # between its words


def test_ids_that_count_the_rows_of_each_file_are_not_proposed(tmp_path):
    for name, first in (("a", 0), ("b", 40)):
        rows = [{"id": n, "text": prose(first + n)} for n in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = inspect_path(tmp_path)
    [source] = tomllib.loads(result.proposal)["data"]["sources"]
    assert "id_field" not in source
    funnel = next(table for table in result.tables if table.title.startswith("Funnel"))
    assert funnel.rows[0][1:3] == (80, 80)
    assert "id: id" not in as_text(result)
    [source] = tomllib.loads(inspect_path(tmp_path / "a.jsonl").proposal)["data"]["sources"]
    assert source["id_field"] == "id"


def test_the_proposed_file_names_what_it_leaves_out(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": prose(n)}) + "\n" for n in range(40)))
    for name in ("b.csv", "c.csv"):
        (tmp_path / name).write_text("n,m\n1,2\n3,4\n")
    (tmp_path / "d.png").write_bytes(b"not text")
    proposal = inspect_path(tmp_path).proposal
    head = " ".join(line.lstrip("#").strip() for line in proposal.partition("[[data.sources]]")[0].splitlines())
    assert "Left out, so that no document comes from them:" in head
    assert f"{tmp_path}/b.csv and 1 more (csv): no field holds text; name it (text_field)" in head
    assert "of no known format, or unreadable: .png 1" in head
    [source] = tomllib.loads(proposal)["data"]["sources"]
    assert source["paths"] == [f"{tmp_path}/**/*.jsonl"]
    assert "Left out" not in inspect_path(tmp_path / "a.jsonl").proposal


def test_a_pipe_is_refused_and_a_line_break_in_a_name_is_written_out(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingInput, match="but a pipe or a device"):
        inspect_path(tmp_path / "pipe")
    (tmp_path / "two\nlines.txt").write_text("short")
    assert r"two\nlines.txt#0" in as_text(inspect_path(tmp_path / "two\nlines.txt"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_a_sample_of_a_table_ends_with_a_whole_row(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 10_000)
    monkeypatch.setattr(sampling, "_STRETCH_BYTES", 1_000)
    text = "id;text\n" + "".join(f"{n};{prose(n)}\n" for n in range(200))
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    [group] = find_inputs(tmp_path)[0]
    read, partly = sample_files(group, 0.2, tmp_path / "copies")
    sampled = read.files[0].read_bytes().decode(encoding)
    assert partly
    assert text.startswith(sampled)
    assert (sampled[-1], 0.1 < len(sampled) / len(text) < 0.4) == ("\n", True)


def test_files_without_text_do_not_count_for_a_sample(tmp_path):
    """Scales of a whole run: files with a text for what is kept, and equally for what is too short."""
    rows = [{"text": prose(number, 1)} for number in range(4_000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = inspect_path(tmp_path, sample_bytes=100_000)
    short = re.search(r"would remove ([\d,]+) documents", alone.proposal)
    assert int(short[1].replace(",", "")) == pytest.approx(4_000, rel=0.1)
    numbers = ({"count": number} for number in range(100_000))
    (tmp_path / "b.ndjson").write_text("".join(json.dumps(row) + "\n" for row in numbers))
    beside = inspect_path(tmp_path, sample_bytes=100_000)
    assert (beside.sampled, short[0] in beside.proposal) == (alone.sampled, True)


def test_texts_that_the_rules_all_remove_are_no_corpus(tmp_path):
    rows = [{"text": f"spam {number} " * 300} for number in range(30)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = inspect_path(tmp_path / "a.jsonl")
    [cause] = result.closing
    assert (cause.gate, cause.cause) == ("no corpus", "clean removes every document")
    assert "data.clean.presets" in cause.fix
    assert "no corpus: clean removes every document" in result.proposal

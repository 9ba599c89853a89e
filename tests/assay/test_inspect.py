"""`assay inspect`: every format, planted truth, samples, and folders that hold nothing to read."""

import csv
import gzip
import json
import os
import struct
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.cli.main import main
from assay.config import load_run
from assay.inspect import formats, sampling
from assay.inspect.formats import InputFiles, choose_fields, find_inputs
from assay.inspect.inspection import inspect_path
from assay.inspect.inspection_page import as_page, as_text
from assay.inspect.proposed_run import KeptTexts, proposed_run
from assay.run_file import CONFIGS
from data_pipeline.ingest import IngestConfig, ingest
from data_pipeline.readers import streams
from governance.errors import ConfigError, MissingInput
from governance.stage import Runtime
from tests.assay.inspected import prose, tables, wiki

FINNISH = """Kaupungin vanha kirjasto suljettiin viime keväänä korjausten vuoksi, ja asukkaat odottivat sen avaamista
koko kesän. Syksyllä ovet avattiin jälleen, mutta moni huomasi, että lukusali oli siirretty toiseen kerrokseen. Nyt
kirjastossa on enemmän tilaa lapsille ja nuorille, ja iltaisin siellä järjestetään luentoja sekä pieniä konsertteja.
Työntekijät kertovat, että kävijöitä on tullut enemmän kuin koskaan ennen, eikä kukaan enää muista pitkää odotusta."""


def test_every_format_is_found_read_and_proposed(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [{"body": prose(number), "doc_id": f"d{number}", "url": "https://a.example/x"} for number in range(10)]
    rows[3]["body"] += " Write to jane@example.org."
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"doc_id": "again"}])
    (folder / "a.jsonl").write_text(lines + "not json\n")
    (folder / "a2.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": prose(90)}).encode()))
    pq.write_table(pa.table({"doc": [{"text": prose(20 + n)} for n in range(5)]}), folder / "b.parquet")
    with (folder / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["n", "content"], *([n, prose(40 + n)] for n in range(4))])
    (folder / "d.txt").write_text(prose(60))
    (folder / "e.html").write_text(f"<html><body><main><p>{prose(61)}</p></main></body></html>")
    with (
        pa.OSFile(str(folder / "f.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("content", pa.string())])) as out,
    ):
        out.write_batch(pa.record_batch({"content": [prose(70), prose(71)]}))
    (folder / "g.png").write_bytes(b"\x89PNG")
    pyarrow.orc.write_table(pa.table({"doc": [{"text": prose(80 + n)} for n in range(2)]}), folder / "h.orc")
    (folder / "i.xml").write_bytes(wiki([prose(84)]))
    (folder / "settings.xml").write_text("<settings/>")
    result = inspect_path(folder)
    page, found = as_page(result), tables(result)
    assert "Funnel under the usual rules" in page
    assert "jane@example.org" not in page + as_text(result)
    (tmp_path / "run.toml").write_text(result.proposal)
    assert {row[0]: row[3] for row in found["Formats and fields"].rows} == {
        "arrow (.arrow)": "text: content",
        "csv (.csv)": "text: content",
        "jsonl (.jsonl)": "text: body, id: doc_id, url: url",
        "jsonl (.jsonl.gz)": "text: text",
        "mediawiki (.xml)": "a document per page",
        "orc (.orc)": "text: doc.text",
        "parquet (.parquet)": "text: doc.text",
        "text (.html)": "a document per file",
        "text (.txt)": "a document per file",
    }
    assert found["Formats and fields"].note == "Not read: .png 1, .xml (no MediaWiki dump) 1."
    assert found["Funnel under the usual rules"].rows[0][:3] == ("ingest", 29, 28)
    assert ("ingest", "quarantine:not_json", 1, "3.4 %") in found["Removed, by reason"].rows
    assert ("dedup", "exact_duplicate", 1) in [row[:3] for row in found["Removed, by reason"].rows]
    assert ("email", 1) in found["Personal data and secrets"].rows
    assert found["Languages"].rows[0][0] == "en"
    proposed = load_run(tmp_path / "run.toml", [], needs="data").config.data
    assert {source.type for source in proposed.sources} == {
        "arrow", "csv", "jsonl", "mediawiki", "orc", "parquet", "text",
    }  # fmt: skip
    assert all("settings" not in path for source in proposed.sources for path in source.paths)


def test_a_hub_data_set_on_disk_is_its_rows_alone(tmp_path):
    """Folders of `save_to_disk`, and a snapshot of the hub's cache: links into its blobs, with a card."""
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_dict({"text": [prose(number) for number in range(12)]})
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    left = next((tmp_path / "saved").glob("*.arrow"))
    (tmp_path / "saved" / "cache-0123.arrow").write_bytes(left.read_bytes())
    hub = tmp_path / "datasets--lab--prose"
    data = {
        "README.md": b"---\nlicense: cc-by-4.0\nlanguage: [en]\n---\n# Prose\n" + prose(50).encode(),
        "data/train-00000-of-00001.parquet": b"",
        "data/train-00000-of-00001.md": prose(60).encode(),
    }
    for number, (name, content) in enumerate(data.items()):
        blob, link = hub / "blobs" / f"{number:064x}", hub / "snapshots" / ("c" * 40) / name
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": [prose(20 + n) for n in range(7)]}), blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    unread = {
        "saved": "(facts of a data set) 2, (left-over of a cache) 1",
        hub.name: "(no ending) 3, (card of a data set) 1",
    }
    licences = {"saved": "NOASSERTION", hub.name: "CC-BY-4.0"}
    for name, documents in (("saved", 12), (hub.name, 8)):
        result = inspect_path(tmp_path / name)
        found = tables(result)
        assert found["Formats and fields"].note == f"Not read: {unread[name]}."
        assert found["Funnel under the usual rules"].rows[0][:3] == ("ingest", documents, documents)
        assert found["Licences"].rows == ((licences[name], documents, "100.0 %"),)
        assert [cause.gate for cause in result.closing] == ["licences.allowed"] * (name == "saved")
        (tmp_path / "run.toml").write_text(result.proposal)
        sources = load_run(tmp_path / "run.toml", [], needs="data").config.data.sources
        assert {source.licence for source in sources} == {licences[name]}
        read = ingest(sources, IngestConfig(), tmp_path, Runtime(tmp_path / f"root-{name}"))
        assert read.stats["documents_kept"] == documents, "the proposed file reads the same"
    # A state that is none and a page that only has a line of dashes are ordinary files.
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"text": prose(70)}))
    (tmp_path / "saved" / "README.md").write_text("---\nnot: [a card\n---\n" + prose(71))
    funnel = tables(inspect_path(tmp_path / "saved"))["Funnel under the usual rules"].rows[0]
    assert funnel[2] == 12 + 6 + 2


@pytest.mark.parametrize(("stated", "expected"), [
    (("license: mit",), "MIT"), (("license: [mit]",), "MIT"), (("license: [mit, apache-2.0]",), "NOASSERTION"),
    (("license: other",), "NOASSERTION"), (("license: mit", "license: cc0-1.0"), "NOASSERTION"),
    (("license: mit", "license: MIT"), "MIT"), (("licence: mit",), "NOASSERTION"), ((), "NOASSERTION"),
])  # fmt: skip
def test_one_licence_of_the_cards_counts_and_a_doubt_does_not(tmp_path, stated, expected):
    for number, line in enumerate(stated or ("",)):
        (tmp_path / str(number) / "data").mkdir(parents=True)
        (tmp_path / str(number) / "data" / "a.jsonl").write_text('{"text": "a"}')
        if line:
            (tmp_path / str(number) / "README.md").write_text(f"---\n{line}\n---\n")
    [group], others = find_inputs(tmp_path)
    assert (group.licence, group.part) == (expected, False)
    assert others["(card of a data set)"] == len(stated)


def test_a_card_says_nothing_of_the_files_beside_its_data_set(tmp_path):
    """One downloaded data set in a folder of own texts would else open the gate on licences for all of them."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("---\nlicense: mit\n---\n")
    for name in ("hub/a.jsonl", "hub/b.csv", "own.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}' if name.endswith("jsonl") else "text\na\n")
    assert {group.ending: group.licence for group in find_inputs(tmp_path)[0]} == {
        ".csv": "MIT", ".jsonl": "NOASSERTION",
    }  # fmt: skip


def test_licences_and_opt_outs_are_counted(tmp_path):
    page = "<html><head><meta name='robots' content='{}'></head><body><main><p>{}</p></main></body></html>"
    head = "WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
    head += "WARC-Target-URI: http://a.example/{}\r\nContent-Length: {}\r\n\r\n"
    records = ""
    for number, signal in enumerate(["noai", "noai", "index"]):
        body = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page.format(signal, prose(number))
        records += head.format(number, len(body)) + body + "\r\n\r\n"
    (tmp_path / "a.warc").write_text(records, newline="")
    rows = [{"text": prose(10 + number), "license": name} for number, name in enumerate(["MIT", "MIT", "CC0-1.0"])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tables(inspect_path(tmp_path))
    assert set(found["Licences"].rows) == {
        ("MIT", 2, "33.3 %"), ("CC0-1.0", 1, "16.7 %"), ("NOASSERTION", 3, "50.0 %"),
    }  # fmt: skip
    counts = {row[0]: row[1] for row in found["Opt-out signals"].rows}
    assert counts == {"robots:noai": 2, "none": 1, "not searched": 3}


def test_gates_that_the_documents_would_close_are_named_with_a_fix(tmp_path):
    """Licences of the records that the policy does not allow, and languages without word lists."""
    licences = ["CC0-1.0"] * 6 + ["CC-BY-NC-4.0"] * 3
    rows = [{"text": prose(number), "licence": licence} for number, licence in enumerate(licences)]
    rows += [{"text": FINNISH, "licence": "CC0-1.0"}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = inspect_path(tmp_path / "in")
    licence, language = result.closing
    assert (licence.gate, licence.cause) == ("licences.allowed", "the policy does not allow CC-BY-NC-4.0 (3 documents)")
    assert (language.gate, language.cause) == (
        "representation.measured", "10 % of documents are in languages that no word list covers: fi 10 %",
    )  # fmt: skip
    for text in (as_text(result), as_page(result), result.proposal):
        flat = " ".join(text.replace("#  ", " ").split())
        assert "CC-BY-NC-4.0 (3 documents)" in flat
        assert "let fairness lower its min" in flat
    own = tmp_path / "policy.toml"
    text = (CONFIGS / "policy.toml").read_text().replace('"CC0-1.0",', '"CC0-1.0", "CC-BY-NC-4.0",')
    own.write_text(text.replace("min = 0.95", "min = 0.5"))
    assert inspect_path(tmp_path / "in", policy=own).closing == ()
    strict = inspect_path(tmp_path / "in", policy=CONFIGS / "policy-strict.toml").closing
    assert [cause.gate for cause in strict[1:]] == [
        "representation.measured", "tone.sentiment_measured", "tone.toxicity_measured", "association.measured",
    ]  # fmt: skip


def test_unreadable_records_and_duplicates_close_gates_of_the_sources(tmp_path):
    rows = [json.dumps({"text": prose(number), "licence": "CC0-1.0"}) for number in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, "{broken", *[rows[0]] * 600]) + "\n")
    closing = inspect_path(tmp_path / "a.jsonl").closing
    assert [(cause.gate, cause.cause) for cause in closing] == [
        (
            "sources.quarantined_share",
            "quarantined_share at ingest is 0.00158 (a.jsonl#30 not_json), and at most 0.001 is allowed",
        ),
        ("sources.duplicate_share", "duplicate_share at dedup is 0.952, and at most 0.9 is allowed"),
    ]
    assert "let the gate's owner (data) change the bound" in closing[0].fix


def test_short_documents_are_proposed_without_the_rules_that_remove_them(tmp_path):
    rows = [{"text": prose(number, 1), "licence": "CC0-1.0"} for number in range(30)]
    rows[7]["licence"] = "CC-BY-NC-4.0"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = inspect_path(tmp_path / "in")
    assert ("clean", "too_few_words", 30, "100.0 %") in tables(result)["Removed, by reason"].rows
    assert "would remove 30 documents as too short" in result.proposal
    assert [cause.cause for cause in result.closing] == ["the policy does not allow CC-BY-NC-4.0 (1 documents)"]
    (tmp_path / "run.toml").write_text(result.proposal)
    assert load_run(tmp_path / "run.toml", []).config.data.clean.presets == ()


@given(st.integers(0, 10**7), st.integers(0, 10**11))
def test_a_proposed_training_is_short_and_repeats_little(documents, size):
    group = InputFiles("jsonl", ".jsonl", (Path("in/a.jsonl"),), size)
    values = tomllib.loads(proposed_run(Path("in"), [(group, {"text": "text"})], [], KeptTexts(documents, size), []))
    train, optim = values["train"], values["optim"]
    assert 20 <= train["steps"] <= 200
    tokens = train["steps"] * train["global_batch_size"] * train["sequence_length"]
    assert train["steps"] == 20 or tokens <= 4 * size / 3.5
    assert optim["warmup_steps"] + optim["decay_steps"] < train["steps"]
    assert 0.03 <= values["data"]["encode"]["validation_share"] <= 0.2


@pytest.mark.parametrize("size", ["10m", "125m", "1b", "7b", "70b"])
def test_a_shipped_size_replaces_the_proposed_training(tmp_path, size):
    """No setting of the small model is left in the large one."""
    group = InputFiles("jsonl", ".jsonl", (tmp_path / "a.jsonl",), 9)
    own, corpus, shipped = tmp_path / "run.toml", tmp_path / "corpus.toml", CONFIGS / f"{size}.toml"
    own.write_text(proposed_run(tmp_path, [(group, {"text": "text", "id": ""})], [], KeptTexts(9, 9), []))
    corpus.write_text(own.read_text().split("# A first training")[0])
    assert load_run(own, [], [shipped]).config.recipe == load_run(corpus, [], [shipped]).config.recipe
    both = [load_run(path, [], [shipped]).config for path in (own, corpus)]
    assert both[0].engine == both[1].engine
    assert both[0].data == both[1].data


def test_files_of_one_ending_with_other_fields_are_sources_of_their_own(tmp_path):
    chat = [{"role": "user", "content": prose(1)}, {"role": "assistant", "content": prose(2)}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": prose(3)}) + "\n" + json.dumps({"text": prose(4)}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": chat}))
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": prose(5)}))
    (tmp_path / "d.jsonl").write_text("damaged")
    result = inspect_path(tmp_path)
    found = tables(result)
    assert [row[1:2] + row[3:] for row in found["Formats and fields"].rows] == [
        (3, "text: text"), (1, "messages: messages"),
    ]  # fmt: skip
    assert found["Funnel under the usual rules"].rows[0][:3] == ("ingest", 5, 4)
    (tmp_path / "run.toml").write_text(result.proposal)
    sources = load_run(tmp_path / "run.toml", [], needs="data").config.data.sources
    assert [[path[-7:] for path in source.paths] for source in sources] == [
        ["a.jsonl", "c.jsonl", "d.jsonl"], ["b.jsonl"],
    ]  # fmt: skip


def test_an_ordinary_folder_is_inspected(tmp_path, monkeypatch):
    """Links that lead nowhere or outside, names in capitals, damaged files: all are read or counted."""
    monkeypatch.setattr(sampling, "_WHOLE_BYTES", 1000)
    folder, outside = tmp_path / "in", tmp_path / "outside.txt"
    folder.mkdir()
    outside.write_text(prose(1))
    (folder / "A.TXT").write_text(prose(2))
    (folder / "gone.txt").symlink_to(tmp_path / "nothing")
    (folder / "out.txt").symlink_to(outside)
    (folder / os.fsdecode(b"bad\xff.txt")).write_text(prose(3))
    rows = "".join(json.dumps({"text": prose(n)}) + "\n" for n in range(40)).encode()
    (folder / "torn.jsonl.gz").write_bytes(gzip.compress(rows)[:-900])
    pq.write_table(pa.table({"text": [prose(n) for n in range(50, 90)]}), folder / "a.parquet")
    (folder / "torn.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-50])
    whole = tables(inspect_path(folder))
    assert whole["Formats and fields"].note == "Not read: (name not UTF-8) 1, (unreadable) 1."
    kept = whole["Funnel under the usual rules"].rows[0][2]
    assert kept > 2 + 40
    part = inspect_path(folder, sample_bytes=20_000)
    assert 0 < tables(part)["Funnel under the usual rules"].rows[0][2] < kept
    (tmp_path / "run.toml").write_text(part.proposal)
    sources = load_run(tmp_path / "run.toml", [], needs="data").config.data.sources
    [text] = [source for source in sources if source.type == "text"]
    assert text.follow_links
    assert [path[-4:] for path in text.paths] == [".TXT", ".txt"]


def test_overlap_with_evaluation_sets_and_groups(tmp_path):
    rows = [{"text": prose(number) + " My grandmother and the young woman laughed."} for number in range(12)]
    items = [{"question": prose(100 + n, 3), "choices": ["one", "two"], "n": n} for n in range(3)]
    rows[4]["text"] += " " + items[1]["question"]
    rows.append({"text": FINNISH})  # a language without word lists
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "quiz.v2.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    result = inspect_path(tmp_path / "docs", eval_sets=[tmp_path / "quiz.v2.jsonl"])
    found = tables(result)
    assert found["Overlap with evaluation sets"].rows == (("quiz", "question, choices", 3, 1, 1),)
    assert ("decontaminate", "contaminated", 1) in [row[:3] for row in found["Removed, by reason"].rows]
    named = {row[:2]: row[2:] for row in found["Groups of people named"].rows}
    assert named["gender", "female"][:2] == (11, "91.7 %"), "the contaminated document is not counted"
    assert "1 documents are in languages without one" in found["Groups of people named"].note
    assert not any(" x " in axis for axis, _ in named)
    (tmp_path / "run.toml").write_text(result.proposal)
    [proposed] = load_run(tmp_path / "run.toml", [], needs="data").config.data.decontaminate.sets
    assert (proposed.fields, proposed.answer_fields) == (("question",), ("choices",))
    with pytest.raises(MissingInput, match=r"--eval-set .*none: no such file"):
        inspect_path(tmp_path / "docs", eval_sets=[tmp_path / "none"])
    (tmp_path / "numbers.jsonl").write_text('{"n": 1}')
    with pytest.raises(ConfigError, match="no field of its first items holds text; they have: n"):
        inspect_path(tmp_path / "docs", eval_sets=[tmp_path / "numbers.jsonl"])


def test_token_files_are_counted(tmp_path):
    np.array([1, 2, 3, 4, 5], np.uint16).tofile(tmp_path / "a.bin")
    (tmp_path / "b.bin").write_bytes(b"")
    (tmp_path / "b.idx").write_bytes(b"MMIDIDX\x00\x00")
    write_index(tmp_path / "a.idx", [3, 2])
    result = inspect_path(tmp_path)
    rows = {row[0]: row[1:] for row in tables(result)["Token files (Megatron)"].rows}
    assert rows["a.idx"] == (2, 5, "uint16")
    assert "b.idx" in str(rows["b.idx"][2]), "damaged: named"
    assert not result.proposal


def write_index(path, sizes, kind=8):
    """An IndexedDataset's index, with one document for each sequence."""
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, kind, len(sizes), len(sizes) + 1)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) * 2
    path.write_bytes(head + np.array(sizes, np.int32).tobytes() + starts.tobytes()
                     + np.arange(len(sizes) + 1, dtype=np.int64).tobytes())  # fmt: skip


def test_ids_of_removed_documents_are_masked(tmp_path):
    rows = [{"id": f"jane{number}@example.org", "text": prose(number)} for number in range(4)]
    rows[0]["text"] = "too short"
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = inspect_path(tmp_path)
    assert tables(result)["Worst documents"].rows
    assert "@example.org" not in as_page(result) + as_text(result)


def test_a_run_file_that_was_edited_is_kept(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(prose(1))
    words = ["inspect", str(tmp_path / "a.txt"), "--output", str(tmp_path / "out"), "--data-workers", "1"]
    assert main(words) == 0
    assert main(words) == 0
    run = tmp_path / "out" / "run.toml"
    assert not (tmp_path / "out" / "run.proposed.toml").exists()
    proposed = run.read_text()
    run.write_text("edited")
    assert main(words) == 0
    assert (run.read_text(), (tmp_path / "out" / "run.proposed.toml").read_text()) == ("edited", proposed)
    assert "is kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, MissingInput, "the folder holds no file"),
        ({"a.png": b"x", "b.exe": b"y", "c.exe": b"z"}, MissingInput, r"none of its 3 files .*\.exe 2, \.png 1"),
        ({"a.zip": b"x", "b.tar.gz": b"y"}, MissingInput, r"Unpack archives \(\.tar, \.zip\) first"),
        (
            {"a.parquet.gz": b"x", "b.arrow.xz": b"y"},
            MissingInput,
            r"none of its 2 files .*\.parquet\.gz 1, \.arrow\.xz 1\).* all but \.parquet, \.arrow",
        ),
        ({"a.jsonl": b'{"n": 1}\n'}, ConfigError, "no field holds text; the fields are: n"),
        ({"a.jsonl": b"\x00\xff" * 99}, ConfigError, r"no record with named values .*: 1 jsonl .*\. They are damaged"),
        ({"a.jsonl": b"", "b.csv": b""}, ConfigError, r"its files are empty, 0 bytes each: 1 csv \(\.csv\), 1 jsonl"),
        ({"a.parquet": b"PAR1"}, ConfigError, "no record with named values"),
        ({"a.jsonl": b'{"text": "%s"}' % (b"x" * 2000)}, ConfigError, "the first line is longer than 64 MiB"),
    ],
)
def test_nothing_to_read_is_reported(tmp_path, monkeypatch, files, error, words):
    for module in (streams, formats):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 1000)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(error, match=words):
        inspect_path(tmp_path)
    with pytest.raises(MissingInput, match="no such file or folder"):
        inspect_path(tmp_path / "none")


def test_fields_by_name_then_by_length():
    records = [
        {"title": "a", "abstract": "word " * 20, "lang": "en", "key": 1},
        {"title": "b", "abstract": "w" * 90, "key": 2},
    ]
    assert choose_fields(records) == {"text": "abstract", "id": "key", "url": "", "language": "lang", "licence": ""}
    assert choose_fields([{"text": "t", "id": "1"}, {"text": "u", "id": "1"}])["id"] == ""
    assert choose_fields([{"a": "short"}])["text"] == ""

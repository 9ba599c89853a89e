"""Evaluation sets as an artifact: every text of every item, whole or not at all."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.decontamination.evaluation_sets import ITEM_SCHEMA, EvaluationSet, evaluation_sets, texts_of
from data_pipeline.documents import read_table
from governance.config import load_config
from governance.errors import ConfigError, MissingInput
from governance.manifest import verify
from governance.stage import Runtime

ROWS = [
    {"id": "q-7", "question": "Why?", "choices": {"text": ["yes", "no"], "label": ["A", "B"]}, "answer": 1},
    {"id": "q-8", "question": ["one only"], "choices": {"text": [], "label": []}, "answer": None, "extra": " "},
]


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def wanted(name="s", paths=("in/*",), fields=("question",), **values):
    return EvaluationSet(name=name, paths=paths, fields=fields, **values)


def made(tmp_path, *sets, root="root", **runtime):
    return evaluation_sets(sets, tmp_path, Runtime(tmp_path / root, **runtime))


def rows_of(manifest, root):
    paths = manifest.files("items", root)
    return [tuple(row.values()) for path in paths for row in read_table(path, ITEM_SCHEMA).to_pylist()]


def put(tmp_path, name, data):
    path = tmp_path / "in" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_texts_of_nested_values():
    assert list(texts_of({"a": ["x", {"b": "y"}], "c": 3, "d": "  ", "e": ["z"], "f": None}, "w")) == [
        ("w.a.0", True, "x"),
        ("w.a.1.b", True, "y"),
        ("w.e.0", False, "z"),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_every_format_gives_the_same_items(tmp_path, kind):
    rows = [
        {**row, "question": [row["question"]] if isinstance(row["question"], str) else row["question"]} for row in ROWS
    ]
    data = lines_of(rows)
    if kind == "parquet":
        path = put(tmp_path, "x.parquet", b"")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        packed = {"jsonl": data, "jsonl.gz": gzip.compress(data), "jsonl.zst": zstandard.compress(data)}[kind]
        put(tmp_path, f"x.{kind}", packed)
    manifest = made(tmp_path, wanted(answer_fields=("choices.text",), id_field="id"))
    assert rows_of(manifest, tmp_path / "root") == [
        ("s", "q-7", "question.0", True, False, "Why?"),
        ("s", "q-7", "choices.text.0", False, True, "yes"),
        ("s", "q-7", "choices.text.1", False, True, "no"),
        ("s", "q-8", "question.0", True, False, "one only"),
    ]
    assert manifest.stats == {"items": {"s": 2}, "texts": {"s": 4}}
    assert not verify(manifest, tmp_path / "root")


def test_items_are_numbered_over_the_files_of_a_set(tmp_path):
    put(tmp_path, "a.jsonl", lines_of([{"q": "first"}, {"q": "second"}]))
    put(tmp_path, "b.jsonl", b"\xef\xbb\xbf" + lines_of([{"q": "third"}]) + b"\n  \n")
    manifest = made(tmp_path, wanted(fields=("q",)))
    assert [row[1:2] + row[5:] for row in rows_of(manifest, tmp_path / "root")] == [
        ("0", "first"),
        ("1", "second"),
        ("2", "third"),
    ]


def test_each_row_is_an_item_of_its_own_though_ids_repeat(tmp_path):
    rows = [{"id": name, "q": text} for name, text in (("a", "1"), ("a", "2"), (7, "3"), ("a", "4"), ("a:1", "5"))]
    put(tmp_path, "a.jsonl", lines_of(rows))
    manifest = made(tmp_path, wanted(fields=("q",), id_field="id"))
    found = [row[1] for row in rows_of(manifest, tmp_path / "root")]
    assert found == ["a", "a:1", "7", "a:3", "a:1:4"]


def test_a_lone_surrogate_is_replaced(tmp_path):
    put(tmp_path, "a.jsonl", b'{"q": "a \\ud800 b"}\n')
    assert rows_of(made(tmp_path, wanted(fields=("q",))), tmp_path / "root")[0][5] == "a ? b"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"q": "x"}\n{"q": ', "line 2 is not JSON"),
        (b'{"q": "x"}\n[1]\n', "line 2 is not a JSON object"),
        (b'{"q": "\xff"}\n', "line 1 is not JSON"),
        (gzip.compress(b'{"q": "x"}\n' * 1000, mtime=0)[:-9], "is cut short"),
        (b"PAR1 no", "cannot be read as Parquet"),
    ],
)
def test_a_set_is_read_whole_or_not_at_all(tmp_path, data, message):
    ending = ".gz" if data[:2] == b"\x1f\x8b" else ".parquet" if data[:4] == b"PAR1" else ""
    put(tmp_path, f"a.jsonl{ending}" if ending != ".parquet" else "a.parquet", data)
    with pytest.raises(MissingInput, match=message):
        made(tmp_path, wanted(fields=("q",)))
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_mistakes_are_named_with_their_fix(tmp_path):
    put(tmp_path, "a.jsonl", lines_of(ROWS))
    with pytest.raises(
        ConfigError, match=r"no item has 'prompt'; its items have: answer, choices, extra, id, question"
    ):
        made(tmp_path, wanted(fields=("question", "prompt")))
    with pytest.raises(ConfigError, match="have no text in any of 2 items"):
        made(tmp_path, wanted(fields=("answer",)))
    with pytest.raises(ConfigError, match="item 0 has no text or whole number"):
        made(tmp_path, wanted(id_field="extra.x"))
    with pytest.raises(MissingInput, match="evaluation set s: 'no/\\*' names no file"):
        made(tmp_path, wanted(paths=("no/*",)))
    run = tmp_path / "run.toml"
    run.write_text('name = "s"\npaths = ["in/*"]\nfields = ["q", "q"]\n')
    with pytest.raises(ConfigError, match="'q' is named twice"):
        load_config(run, EvaluationSet)


def test_a_look_up_makes_nothing(tmp_path):
    put(tmp_path, "a.jsonl", lines_of(ROWS))
    with pytest.raises(MissingInput, match="not made yet"):
        made(tmp_path, wanted(), make=False)
    first = made(tmp_path, wanted())
    assert made(tmp_path, wanted(), make=False) == first


def test_one_digest_wherever_the_files_are_and_however_many_workers(tmp_path):
    put(tmp_path, "a.jsonl", lines_of(ROWS))
    put(tmp_path, "b.jsonl", lines_of(ROWS[:1]))
    sets = [wanted(f"s{k}", paths=(f"in/{name}.jsonl",)) for k, name in enumerate("ab")]
    one = made(tmp_path, *sets)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "in").rename(other / "in")
    two = evaluation_sets(sets, other, Runtime(tmp_path / "second", workers=2))
    assert one.digest == two.digest


def test_only_a_changed_set_is_read_again(tmp_path):
    put(tmp_path, "a.jsonl", lines_of(ROWS))
    put(tmp_path, "b.jsonl", lines_of(ROWS[:1]))
    sets = [wanted(f"s{k}", paths=(f"in/{name}.jsonl",)) for k, name in enumerate("ab")]
    first = made(tmp_path, *sets)
    put(tmp_path, "b.jsonl", lines_of(ROWS))
    second = made(tmp_path, *sets)
    files = [manifest.files("items", tmp_path / "root") for manifest in (first, second)]
    same, changed = ([paths[k].stat().st_ino for paths in files] for k in (0, 1))
    assert same[0] == same[1]
    assert changed[0] != changed[1]

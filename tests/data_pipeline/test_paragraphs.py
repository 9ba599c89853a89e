"""Repeated paragraphs and lines: a plain reference, which copies stay and go, and the laws of a stage."""

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.paragraphs import ParagraphsConfig, drop_paragraphs, without
from data_pipeline.kernels.paragraph_hashes import find_units
from governance.kernels.buffers import text_buffers
from governance.manifest import Manifest
from governance.stage import Runtime
from tests.data_pipeline.document_artifacts import documents_of, rows_of
from tests.given_data import given_rows

GOLDEN = "aade157ca57e7bb2eedea555fd41f7bb8be0a95c78d07d9b551c8c7ab238d046"
BLANKS = " \t\n\v\f\r"


def corpus(root: Path, texts: list[str], a_shard: int = 3) -> Manifest:
    rows = [{"id": f"web/f#{i}", "text": text, "file": "f", "position": i} for i, text in enumerate(texts)]
    shards = {f"{shard:05d}": rows[first : first + a_shard] for shard, first in enumerate(range(0, len(rows), a_shard))}
    return documents_of(root, "dedup", shards, "c")


def folded(text: str) -> str:
    for blank in BLANKS:
        text = text.replace(blank, " ")
    return " ".join(part for part in text.split(" ") if part)


def has_words(text: str) -> bool:
    return any(letter.isalpha() or letter in "0123456789" for letter in text)


def reference_units(text: str, min_paragraph: int, min_line: int) -> list[tuple[int, int, int, str]]:
    """(kind, start, end, folded words) in bytes, by splitting; slow and plain."""
    found, at, paragraph = [], 0, None
    for line in [*text.split("\n"), None]:
        if line is None or not line.strip(BLANKS):
            if paragraph:
                start, end = paragraph
                words = folded(text.encode()[start:end].decode())
                if len(words.encode()) >= min_paragraph and has_words(words):
                    found.append((0, start, end, words))
            paragraph = None
        else:
            end = at + len(line.encode())
            paragraph = (paragraph[0] if paragraph else at, end)
            if len(folded(line).encode()) >= min_line and has_words(line):
                found.append((1, at, end, folded(line)))
        at += len((line or "").encode()) + 1
    return found


PIECES = st.lists(
    st.sampled_from(["a", " ", "\n", "\n\n", "word", "\t", "zwei", "é", "\r", "中", "--", "—", "7", "٣"]), max_size=25
)


@settings(max_examples=300)
@given(pieces=st.lists(PIECES, min_size=1, max_size=4), paragraph=st.integers(1, 6), line=st.integers(1, 6))
def test_units_are_those_of_the_reference(pieces, paragraph, line):
    texts = ["".join(parts) for parts in pieces]
    units = find_units(*text_buffers(pa.array(texts, pa.large_string())), paragraph, line)
    found: dict[int, list] = {row: [] for row in range(len(texts))}
    keys: dict[tuple, set] = {}
    for i in range(len(units.row)):
        start, end = int(units.start[i]), int(units.end[i])
        words = folded(texts[units.row[i]].encode()[start:end].decode())
        found[int(units.row[i])].append((int(units.kind[i]), start, end, words))
        keys.setdefault(words, set()).add((int(units.high[i]), int(units.low[i])))
    for row, text in enumerate(texts):
        assert sorted(found[row]) == sorted(reference_units(text, paragraph, line))
    assert all(len(same) == 1 for same in keys.values())  # equal words, equal hashes
    assert len({key for same in keys.values() for key in same}) == len(keys)  # and the other way round


def test_a_paragraph_stays_where_it_is_first(tmp_path):
    shared = "Shared paragraph that two documents hold, long enough to be compared by the stage. " * 3
    texts = [f"Own words of number {i}, and more of them so that enough is left behind. " * 3 for i in range(4)]
    documents = corpus(tmp_path, [
        texts[0], texts[1] + "\n\n" + shared, texts[2], shared + "\n\n" + texts[3],
    ])  # fmt: skip
    made = drop_paragraphs(documents, ParagraphsConfig(), Runtime(tmp_path))
    kept = {row["id"]: row["text"] for row in rows_of(made, "documents", tmp_path)}
    assert shared.strip() in kept["web/f#1"]
    assert kept["web/f#3"] == texts[3].strip()
    assert kept["web/f#0"] == texts[0]  # untouched, its blank at the end too
    assert [row["id"] for row in rows_of(made, "cuts", tmp_path)] == ["web/f#3"]
    assert made.stats["cut"] == {"paragraphs": 1, "lines": 0, "documents": 1}


def test_boilerplate_lines_go_from_all_but_the_first(tmp_path):
    line = "Accept all cookies and read our terms of use"
    texts = [
        f"{line}\nBody of page {i} with words that no other page has, page {i} alone. " + f"w{i} " * 20
        for i in range(8)
    ]
    made = drop_paragraphs(corpus(tmp_path, texts), ParagraphsConfig(), Runtime(tmp_path))
    kept = [row["text"] for row in rows_of(made, "documents", tmp_path)]
    assert kept[0] == texts[0]
    assert all(line not in text and text.startswith("Body of page") for text in kept[1:])
    few = drop_paragraphs(corpus(tmp_path / "few", texts[:5]), ParagraphsConfig(), Runtime(tmp_path / "few"))
    assert few.stats["cut"]["lines"] == 0


def test_rules_of_headings_and_tables_stay(tmp_path):
    rules = ["=" * 30, "| --- | --- | --- | --- |", "─" * 10]
    texts = [f"{rules[0]}\nTitle {i}\n{rules[0]}\n\n| a | b | c | {i} |\n{rules[1]}\n{rules[2]}\n" for i in range(9)]
    made = drop_paragraphs(corpus(tmp_path, texts), ParagraphsConfig(), Runtime(tmp_path))
    assert [row["text"] for row in rows_of(made, "documents", tmp_path)] == texts


@pytest.mark.parametrize("least", [0, 100])
def test_a_document_of_nothing_else_leaves_whole(tmp_path, least):
    shared = "The same long paragraph again and again, which is long enough to be compared by all means. " * 3
    made = drop_paragraphs(
        corpus(tmp_path, [shared + "\n\nMore. " * 20, shared]),
        ParagraphsConfig(min_left_bytes=least),
        Runtime(tmp_path),
    )
    removed = rows_of(made, "removed", tmp_path)
    assert [(row["id"], row["reason"], row["text"]) for row in removed] == [("web/f#1", "duplicate_text", shared)]
    assert made.stats["removed"] == {"duplicate_text": 1}
    assert made.stats["documents_in"] == made.stats["documents_kept"] + 1


@settings(max_examples=15)
@given(
    st.lists(st.lists(st.sampled_from(["ab cd", "ef gh", "x", "", "lone wolf"]), max_size=7), min_size=1, max_size=7)
)
def test_against_a_plain_reference(tmp_path_factory, documents):
    root = tmp_path_factory.mktemp("root")
    texts = ["\n".join(parts) for parts in documents]
    config = ParagraphsConfig(
        min_paragraph_documents=2, min_paragraph_bytes=4, min_line_documents=3, min_line_bytes=4, min_left_bytes=0
    )
    holders: dict[tuple[int, str], dict[int, tuple[int, int]]] = {}
    order = [[] for _ in texts]
    for i, text in enumerate(texts):
        order[i] = reference_units(text, 4, 4)
        for kind, start, end, words in order[i]:
            holders.setdefault((kind, words), {}).setdefault(i, (start, end))
    expected = []
    for i, text in enumerate(texts):
        spans = []
        for kind, start, end, words in order[i]:
            where = holders[kind, words]
            first = min(where)
            if len(where) >= (2, 3)[kind] and (i, (start, end)) != (first, where[first]):
                spans.append((start, end))
        left = [c for k, c in enumerate(text) if not any(a <= k < b for a, b in spans)]
        if not spans or "".join(left).split():
            expected.append("".join(left).split())
    made = drop_paragraphs(corpus(root, texts), config, Runtime(root))
    assert [row["text"].split() for row in rows_of(made, "documents", root)] == expected


@given(st.binary(max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5))
def test_without_drops_the_spans_and_only_the_blanks_next_to_them(text, pairs):
    spans = [(min(p), min(max(p), len(text))) for p in pairs if min(p) < len(text)]
    left = without(text, spans)
    outside = bytes(c for i, c in enumerate(text) if not any(a <= i < b for a, b in spans))
    assert b"".join(left.split()) == b"".join(outside.split())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_have_not_changed_without_their_version(tmp_path, workers):
    shared = "A paragraph that several documents hold, and which is long enough to be compared here. " * 3
    texts = [(f"Document {i} has its own words. " * 8) + ("\n\n" + shared if i % 3 else "") for i in range(9)]
    made = drop_paragraphs(corpus(tmp_path, texts), ParagraphsConfig(), Runtime(tmp_path, workers=workers))
    assert made.digest == GOLDEN


def test_daft_gives_the_same_bytes(tmp_path):
    pytest.importorskip("daft", reason="daft is not installed: pip install 'assay-pretrain[ray]'")
    shared = "A paragraph that every document holds, word by word, to its very end. " * 3
    texts = [f"Own {i} " * 30 + "\n\n" + shared for i in range(7)]
    made = {}
    for engine in ("duckdb", "daft"):
        root = tmp_path / engine
        made[engine] = drop_paragraphs(corpus(root, texts), ParagraphsConfig(), Runtime(root, engine=engine))
    assert made["duckdb"].digest == made["daft"].digest
    assert made["daft"].stats["cut"]["paragraphs"] == 6


def test_planted_reuse(tmp_path):
    rows, spans = (list(given_rows(f"dups/{name}")) for name in ("docs", "truth_spans"))
    made = drop_paragraphs(corpus(tmp_path, [row["text"] for row in rows], 500), ParagraphsConfig(), Runtime(tmp_path))
    number = {row["id"]: i for i, row in enumerate(rows)}
    cut_in = {int(row["id"].partition("#")[2]) for row in rows_of(made, "cuts", tmp_path)}
    text_of = {row["id"]: row["text"] for row in rows}

    def whole(document: str, start: int, end: int) -> bool:
        """The span is whole paragraphs of the document, the only units that this stage compares."""
        before, behind = text_of[document][:start], text_of[document][end:]
        inside = text_of[document][start:end].split("\n\n")
        borders = (not before or before.endswith("\n\n")) and (not behind or behind.startswith("\n\n"))
        return borders and any(len(folded(part).encode()) >= 100 for part in inside)

    reused = [
        span
        for span in spans
        if whole(span["doc_a"], span["a_start"], span["a_end"]) and whole(span["doc_b"], span["b_start"], span["b_end"])
    ]
    assert len(reused) > 10
    found = [span for span in reused if {number[span["doc_a"]], number[span["doc_b"]]} & cut_in]
    assert len(found) == len(reused)


def _race(root: Path, texts: list[str]) -> None:
    drop_paragraphs(corpus(root, texts), ParagraphsConfig(), Runtime(root))


def test_processes_that_make_the_same_artifact_leave_each_other_alone(tmp_path):
    texts = [f"{'boilerplate ' * 12}\n\n{'own words ' * 30}{i}" for i in range(12)]
    corpus(tmp_path, texts)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_race, args=(tmp_path, texts)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    assert not list(tmp_path.rglob("join~*"))

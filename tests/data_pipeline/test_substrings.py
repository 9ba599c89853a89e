"""Repeated substrings: a plain reference, planted repeats, edges, and the laws of a stage."""

import contextlib
import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup import cutting
from data_pipeline.dedup import substrings as stage
from data_pipeline.dedup.substrings import SubstringsConfig, drop_substrings, spans_of
from data_pipeline.documents import cut_spans
from data_pipeline.kernels.substring_windows import MAX_COPIES, find_repeats, select_windows
from governance.errors import AlteredFile
from governance.kernels.buffers import text_buffers
from governance.parallel import map_shards
from governance.stage import Runtime
from tests.data_pipeline.test_paragraphs import corpus, rows_of
from tests.given_data import given_rows

GOLDEN = "c1b41e05b477afebb9c8747ab2339c7f7822bb3bebe167f1fcb574a060dbccac"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def prose(seed: int, size: int) -> str:
    """Random words, `size` bytes of them, which no other seed has in this order."""
    chance = random.Random(seed)
    words = []
    while sum(map(len, words)) + len(words) < size + 10:
        words.append("".join(chance.choices(LETTERS, k=chance.randint(2, 9))))
    return " ".join(words)[:size].strip()


def repeats_by_kernel(texts: list[bytes], least: int, min_left: int = 0) -> list[set[int]]:
    """Bytes of each text that the kernels find to be repeats, where texts with less than `min_left` others leave."""
    width = least // 2
    data, offsets = text_buffers(pa.array([text.decode() for text in texts], pa.large_string()))
    rows, starts, hashes = select_windows(data, offsets, width, least - width + 1)
    groups = np.unique(hashes, return_inverse=True)[1].astype(np.int64)
    cut: list[set[int]] = [set() for _ in texts]

    def stays(text, repeats):
        for start, end, other, other_start in repeats.tolist():
            assert end - start >= least
            assert texts[text][start:end] == texts[other][other_start : other_start + end - start]
            assert other < text or (other == text and start - other_start >= least)
            cut[text] |= set(range(start, end))
        return len(texts[text]) - len(cut[text]) >= min_left

    assert find_repeats(data, offsets, rows, starts, groups, width, least, stays) == 0
    return cut


def repeats_by_reference(texts: list[bytes], least: int, min_left: int) -> list[set[int]]:
    """Bytes in a run of `least` bytes that occurs before, by a table of all runs; slow and plain."""
    seen: dict[bytes, tuple[int, int]] = {}
    cut: list[set[int]] = [set() for _ in texts]
    for text, content in enumerate(texts):
        before = dict(seen)
        for start in range(len(content) - least + 1):
            run = content[start : start + least]
            other, earlier = seen.setdefault(run, (text, start))
            if other < text or start - earlier >= least:
                cut[text] |= set(range(start, start + least))
        if cut[text] and len(content) - len(cut[text]) < min_left:
            seen = before
    return cut


BLOCKS = [prose(seed, 30 + 7 * seed) for seed in range(6)]
PIECES = st.lists(st.one_of(st.sampled_from(BLOCKS), st.integers(100, 160).map(lambda n: prose(n, n % 50))), max_size=9)


@settings(max_examples=200)
@given(documents=st.lists(PIECES, min_size=1, max_size=5), least=st.integers(32, 90), min_left=st.integers(0, 200))
def test_repeats_are_those_of_the_reference(documents, least, min_left):
    texts = [" ".join(pieces).encode() for pieces in documents]
    assert repeats_by_kernel(texts, least, min_left) == repeats_by_reference(texts, least, min_left)


def test_text_of_one_period_is_cut_to_one_copy():
    """A run of one byte selects few windows, and they are enough."""
    texts = [b"=" * 5000, prose(1, 700).encode() + b"=" * 3000]
    width, least = 64, 128
    data, offsets = text_buffers(pa.array([text.decode() for text in texts], pa.large_string()))
    rows, _, _ = select_windows(data, offsets, width, least - width + 1)
    assert (rows == 0).sum() <= 5000 // (least - width + 1) + 2
    assert set(range(len(texts[1]) - 3000, len(texts[1]))) <= repeats_by_kernel(texts, least)[1]


def test_planted_repeats_are_cut_and_nothing_else(tmp_path):
    """Each planted copy but the first is removed, whatever is around it; other text is kept to the byte."""
    chance = random.Random(5)
    planted = [prose(1000 + i, size) for i, size in enumerate((520, 700, 1500, 4000))]
    texts, expected, held = [], [], set()
    for number in range(60):
        own = [prose(number * 10 + part, chance.randint(200, 900)) for part in range(3)]
        which = chance.randrange(len(planted))
        texts.append(f"{own[0]} {number} {planted[which]} {number} {own[1]}\n\n{own[2]}")
        first = which not in held
        held.add(which)
        expected.append(texts[-1] if first else f"{own[0]} {number} {number} {own[1]}\n\n{own[2]}")
    made = drop_substrings(corpus(tmp_path, texts, 7), SubstringsConfig(), Runtime(tmp_path))
    assert [row["text"] for row in rows_of(made, "documents", tmp_path)] == expected
    assert made.stats["cut"] == {"repeats": 60 - len(held), "gaps": 0, "documents": 60 - len(held)}
    by_id = {f"web/f#{number}": text.encode() for number, text in enumerate(texts)}
    cuts = rows_of(made, "cuts", tmp_path)
    for cut in cuts:
        size = cut["end"] - cut["start"]
        earlier = by_id[cut["earlier"]][cut["earlier_start"] : cut["earlier_start"] + size]
        assert by_id[cut["id"]][cut["start"] : cut["end"]] == earlier
    shorter = [f"{prose(70 + i, 300)} {prose(4, 480)} {prose(90 + i, 300)}" for i in range(5)]
    root = tmp_path / "shorter"
    made = drop_substrings(corpus(root, shorter), SubstringsConfig(), Runtime(root))
    assert [row["text"] for row in rows_of(made, "documents", root)] == shorter


def test_gaps_are_bridged_up_to_the_limit(tmp_path):
    left, right = prose(1, 600), prose(2, 600)
    texts = [
        f"{prose(30 + i, 300)}\n{left} on day {chr(97 + i)}{i + 2} {right}\n{prose(50 + i, 300)}" for i in range(3)
    ]
    kept = {}
    for bridge in (0, 1, 2):
        root = tmp_path / str(bridge)
        made = drop_substrings(corpus(root, texts), SubstringsConfig(bridge_bytes=bridge), Runtime(root))
        kept[bridge] = [row["text"] for row in rows_of(made, "documents", root)][2], made.stats["cut"]["gaps"]
    assert "c4" in kept[0][0]
    assert "c4" in kept[1][0]
    assert "c4" not in kept[2][0]
    assert [gaps for _, gaps in kept.values()] == [0, 0, 2]


@given(
    text=st.text(alphabet="ab é中\n", min_size=40, max_size=120),
    places=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 60)), min_size=1, max_size=4),
    bridge=st.integers(0, 8),
)
def test_spans_ascend_and_tear_no_character(text, places, bridge):
    data = text.encode()
    repeats = sorted({(a, min(a + n, len(data)), 0, 0) for a, n in places}, key=lambda r: (r[0], -r[1]))
    array = np.array(repeats, np.int64).reshape(-1, 4)
    spans = list(spans_of(array, np.frombuffer(data, np.uint8), bridge))
    assert all(a[2] <= b[1] for a, b in itertools.pairwise(spans))
    cut_spans(data, [(start, end) for _, start, end, _, _ in spans]).decode()
    inside = {i for start, end, _, _ in repeats for i in range(start, end)}
    assert all(i in inside for kind, start, end, _, _ in spans if kind == 0 for i in range(start, end))


def test_no_word_is_torn_at_the_edge_of_a_cut(tmp_path):
    shared = prose(3, 600)
    texts = [f"{prose(10 + i, 200)} {head}{shared}{tail} {prose(20 + i, 200)}" for i, (head, tail) in
             enumerate([("be", "ly"), ("un", "ness")])]  # fmt: skip
    made = drop_substrings(corpus(tmp_path, texts), SubstringsConfig(), Runtime(tmp_path))
    first, *_, last = shared.split(" ")
    kept = rows_of(made, "documents", tmp_path)[1]["text"]
    assert kept == f"{prose(11, 200)} un{first} {last}ness {prose(21, 200)}"


def test_a_document_altered_before_the_join_leaves_no_cut(tmp_path):
    """A killed run found its windows. After the text is restored, the result is that of an undisturbed run."""
    shared = prose(1, 900)
    documents = corpus(tmp_path, [f"{shared} {prose(2, 200)}", f"{prose(3, 200)} {shared}"], 1)
    whole = drop_substrings(documents, SubstringsConfig(), Runtime(tmp_path))
    (tmp_path / whole.path).unlink()
    for left in (tmp_path / "substrings" / "records").glob("*.parquet*"):
        left.unlink()
    path = documents.files("documents", tmp_path)[1]
    data = path.read_bytes()
    corpus(tmp_path, [f"{shared} {prose(2, 200)}", f"{prose(3, 200)} {prose(4, 899)}"], 1)
    with pytest.raises(AlteredFile, match=path.name):
        drop_substrings(documents, SubstringsConfig(), Runtime(tmp_path))
    path.write_bytes(data)
    assert drop_substrings(documents, SubstringsConfig(), Runtime(tmp_path)).digest == whole.digest


@pytest.mark.parametrize("least", [0, 100])
def test_a_document_of_nothing_else_leaves_whole(tmp_path, least):
    shared = prose(1, 900)
    made = drop_substrings(
        corpus(tmp_path, [f"{shared} {prose(2, 200)}", shared]),
        SubstringsConfig(min_left_bytes=least),
        Runtime(tmp_path),
    )
    assert [(row["id"], row["reason"], row["text"]) for row in rows_of(made, "removed", tmp_path)] == [
        ("web/f#1", "duplicate_text", shared)
    ]
    assert made.stats["documents_in"] == made.stats["documents_kept"] + 1


def test_nothing_is_cut_because_of_a_document_that_is_removed(tmp_path):
    """The last copy of a passage stays, wherever the limit on what is left removes the document with the first."""
    shared, other, own = prose(1, 900), prose(2, 900), " of the 25 bytes of its own "
    passage = prose(3, 700)
    for name, between, config in [
        ("bridge", own, SubstringsConfig()),
        ("left", f" {passage} ", SubstringsConfig(min_left_bytes=1000)),
    ]:
        ends = prose(4, 1200), prose(5, 1200)
        texts = [f"{prose(6, 1200)} {shared}", f"{other} {prose(7, 1200)}", f"{shared}{between}{other}",
                 f"{ends[0]} {shared}{between}{other} {ends[1]}", f"{shared} {other}"]  # fmt: skip
        root = tmp_path / name
        made = drop_substrings(corpus(root, texts), config, Runtime(root))
        assert [row["id"] for row in rows_of(made, "removed", root)] == ["web/f#2", "web/f#4"]
        left = [row["text"].split() for row in rows_of(made, "documents", root)]
        assert left == [texts[0].split(), texts[1].split(), f"{ends[0]} {between} {ends[1]}".split()]
        earlier = {row["id"]: row["earlier"] for row in rows_of(made, "cuts", root)}
        assert "web/f#2" not in earlier.values()


def test_the_key_of_a_shard_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    """Ids are held with offsets of 64 bits too, since those of all compared documents are one array."""
    inputs, kinds = [], []

    def listed(recipe, function, shards, folder, runtime):
        inputs.extend(len(shard.inputs) for shard in shards)
        return map_shards(recipe, function, shards, folder, runtime)

    @contextlib.contextmanager
    def texts_of(*given):
        with texts(*given) as found:
            kinds.append(found[2].type)
            yield found

    texts = stage._texts
    monkeypatch.setattr(cutting, "map_shards", listed)
    monkeypatch.setattr(stage, "_texts", texts_of)
    drop_substrings(corpus(tmp_path, [prose(i, 300) for i in range(9)], 1), SubstringsConfig(), Runtime(tmp_path))
    assert inputs == [2] * 9 + [4] * 9
    assert kinds == [pa.large_string()]


def test_windows_of_too_many_surroundings_are_counted(tmp_path):
    """More surroundings than are compared: repeats that remain there are in the counts."""
    footer = prose(1, 480)
    texts = [f"{prose(100 + i, 300)} {footer} {prose(300 + i, 300)}" for i in range(MAX_COPIES + 6)]
    made = drop_substrings(corpus(tmp_path, texts, 40), SubstringsConfig(), Runtime(tmp_path))
    assert made.stats["cut"]["repeats"] == 0
    assert made.stats["windows_cut_short"] > 0


def test_planted_reuse(tmp_path):
    """Passages of 500 bytes or more that occur in two documents of the planted set are cut from one, whole."""
    rows, spans = (list(given_rows(f"dups/{name}")) for name in ("docs", "truth_spans"))
    made = drop_substrings(corpus(tmp_path, [row["text"] for row in rows], 500), SubstringsConfig(), Runtime(tmp_path))
    number = {row["id"]: i for i, row in enumerate(rows)}
    text_of = {row["id"]: row["text"] for row in rows}
    cut: dict[int, set[int]] = {}
    for row in rows_of(made, "cuts", tmp_path):
        cut.setdefault(int(row["id"].partition("#")[2]), set()).update(range(row["start"], row["end"]))
    planted = 0
    for span in spans:
        places = [(span[f"doc_{side}"], span[f"{side}_start"], span[f"{side}_end"]) for side in "ab"]
        first, second = (text_of[name][start:end].encode() for name, start, end in places)
        if first == second and len(first) >= 500:
            planted += 1
            starts = [(number[name], len(text_of[name][:start].encode())) for name, start, _ in places]
            assert any(set(range(at, at + len(first))) <= cut.get(place, set()) for place, at in starts)
    assert planted > 10


def test_workers_change_nothing(tmp_path):
    """Engines are those of the join, which the tests of `paragraphs` compare."""
    shared = prose(1, 800)
    texts = [f"{prose(10 + i, 400)}\n\n{shared if i % 3 else ''}" for i in range(9)]
    digests = set()
    for workers in (1, 2):
        root = tmp_path / str(workers)
        digests.add(drop_substrings(corpus(root, texts), SubstringsConfig(), Runtime(root, workers=workers)).digest)
    assert digests == {GOLDEN}


@pytest.mark.parametrize("value", [63, 0, -1])
def test_a_repeat_too_short_is_refused(value):
    with pytest.raises(ValueError, match="greater than or equal to 64"):
        SubstringsConfig(min_bytes=value)

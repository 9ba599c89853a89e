"""Decontamination: the definition of an item, the evidence, removal and cutting, and the laws of a stage."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.decontamination.decontaminate import HIT_SCHEMA, DecontaminateConfig, decontaminate
from data_pipeline.decontamination.evaluation_sets import EvaluationSet, evaluation_sets
from data_pipeline.decontamination.passages import Hit, Measures, PassageConfig, stands_alone, strongest
from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, cut_spans, read_table
from governance.errors import MissingInput
from governance.manifest import verify
from governance.stage import Runtime
from tests.data_pipeline.document_artifacts import documents_of

GOLDEN = "595fd54dde8bc3566773bdab7d34b11cf94b52295d837d6e857e2561b41cef70"
FILLER = "The harbour was quiet that evening and nobody spoke of the storm. "
QUESTION = "Which gas do plants take from the air when they make sugar?"
ITEMS = [
    {"q": QUESTION, "c": ["oxygen", "carbon dioxide", "nitrogen", "helium"], "a": "carbon dioxide"},
    {
        "q": "What is it?",
        "c": ["a small brown owl", "a bent copper spoon", "the third of May"],
        "a": "the third of May",
    },
    {
        "q": "Which of the following statements is true?",
        "c": ["Lead floats on milk", "Ice sinks in oil"],
        "a": "neither",
    },
    {
        "q": "Which of the following statements is true?",
        "c": ["Salt burns blue", "Tin smells of roses"],
        "a": "neither",
    },
    {"q": "Which of the following statements is true?", "c": ["Owls eat chalk", "Frogs knit socks"], "a": "neither"},
    {"q": "Who wrote the oldest novel here?", "c": ["National Oceanic and Atmospheric Administration office"], "a": ""},
    {"q": "水在标准大气压下的沸点是多少摄氏度请写出数字", "c": [], "a": "一百"},
    {"q": "Tom has 3 red boxes of 12 pens each and gives 5 pens to each of 4 friends; how many pens are left over?"},
]


def corpus(root, texts, shards=1):
    """Documents as `clean` leaves them, dealt out over shards."""
    rows = [
        {"id": f"d{k}", "text": text, "source": f"source{k % 2}", "language": "en", "file": "f", "position": k}
        for k, text in enumerate(texts)
    ]
    return documents_of(root, "dedup", {str(shard): rows[shard::shards] for shard in range(shards)}, "b")


def made(folder, texts, items=ITEMS, shards=1, workers=1, fields=("q",), **config):
    (folder / "sets").mkdir(parents=True, exist_ok=True)
    (folder / "sets" / "s.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    answers = tuple(name for name in ("c", "a") if any(name in item for item in items) and name not in fields)
    wanted = EvaluationSet(name="s", paths=("sets/s.jsonl",), fields=fields, answer_fields=answers)
    runtime = Runtime(folder / "root", workers=workers)
    sets = evaluation_sets([wanted], folder, runtime)
    documents = corpus(runtime.root, texts, shards)
    return decontaminate(documents, sets, DecontaminateConfig(sets=(wanted,), **config), runtime)


def rows_of(manifest, role, folder):
    schema = {"documents": DOCUMENT_SCHEMA, "removed": REMOVED_SCHEMA, "hits": HIT_SCHEMA}[role]
    paths = manifest.files(role, folder / "root")
    return [row for path in paths for row in read_table(path, schema).to_pylist()]


def hits_of(folder, text, **config):
    """(item, part, the span's text) of each hit in one document."""
    manifest = made(folder, [text], **config)
    return [(row["item"], row["part"], text[row["start"] : row["end"]]) for row in rows_of(manifest, "hits", folder)]


def around(text):
    return f"{FILLER}\n\n{text}\n\n{FILLER}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (around(QUESTION), [("0", "q")]),
        (FILLER + "he asked which gas do Plants take, from the air; when they make sugar? and so on", [("0", "q")]),
        (around(QUESTION.replace("sugar", "bread")), [("0", "q")]),
        (around("Q: Which gas do take from the air when they make sugar? A: no"), [("0", "q")]),
        ("It is known which gas do plants take from the air when they make music and so on.", []),
        (around("which gas do plants take"), []),
        (around("What is it?"), []),
        (
            around("What is it?\nA. a small brown owl\nB. a bent copper spoon\nC. the third of May\nAnswer: C"),
            [("1", "*")],
        ),
        (around("Which of the following statements is true?"), []),
        (around("Which of the following statements is true? (1) Owls eat chalk (2) Frogs knit socks"), [("4", "*")]),
        (around("Who wrote the oldest novel here?"), [("5", "q")]),
        ("and so he asked me who wrote the oldest novel here and then left", []),
        (around("Who wrote the newest novel here?"), []),
        (around("the National Oceanic and Atmospheric Administration office"), []),
        ("前文水在标准大气压下的沸点是多少摄氏度请写出数字后文", [("6", "q")]),
        ("前文。水在标准大气压下的沸点是几何摄氏度请写出数字。后文", [("6", "q")]),
        ("标准大气压", []),
    ],
)
def test_what_counts_as_an_item(tmp_path, text, expected):
    assert [hit[:2] for hit in hits_of(tmp_path, text)] == expected


def test_choices_in_a_list_name_no_item_even_as_fields(tmp_path):
    text = around("the National Oceanic and Atmospheric Administration office")
    assert hits_of(tmp_path, text, fields=("q", "c")) == []


def test_escapes_accents_and_signs_are_no_disguise(tmp_path):
    text = json.dumps({"prompt": f"Café: {QUESTION}\nAnswer it."})
    assert [hit[:2] for hit in hits_of(tmp_path, text.replace("gas", "g\\u0061s"))] == [("0", "q")]


def test_evidence_is_exact_in_characters_and_bytes(tmp_path):
    question = ITEMS[7]["q"]
    text = f"Größe — «日本»\n{question}\nEnde {QUESTION}"
    manifest = made(tmp_path, [FILLER, text])
    first, second = rows_of(manifest, "hits", tmp_path)
    assert (first["document"], first["source"], first["set"], first["item"], first["part"]) == (
        "d1",
        "source1",
        "s",
        "7",
        "q",
    )
    assert text[first["start"] : first["end"]] == question[:-1]
    assert text.encode()[first["start_byte"] : first["end_byte"]].decode() == question[:-1]
    assert text[second["start"] : second["end"]] == QUESTION[:-1]
    words = len(question.split())
    assert (first["words_found"], first["passage_words"], first["coverage"]) == (words, words, 1.0)
    assert (first["rule"], first["action"]) == ("coverage", "drop_document")
    (removed,) = rows_of(manifest, "removed", tmp_path)
    assert removed["reason"] == "contaminated"
    assert removed["evidence"] == f"s#7 q {first['start']}-{first['end']}"
    assert removed["text"] == text
    assert [row["id"] for row in rows_of(manifest, "documents", tmp_path)] == ["d0"]


def test_a_long_run_is_enough_and_says_so(tmp_path):
    rng = random.Random(0)
    passage = " ".join(f"w{rng.randrange(999)}x" for _ in range(200))
    part = " ".join(passage.split()[60:115])
    manifest = made(tmp_path, [FILLER + part + " " + FILLER], items=[{"q": passage}])
    (hit,) = rows_of(manifest, "hits", tmp_path)
    assert (hit["rule"], hit["words_found"], hit["passage_words"], hit["coverage"]) == ("run", 55, 200, 0.275)
    assert made(tmp_path, [FILLER + part], items=[{"q": passage}], run_words=56).stats["hits_by_set"] == {}


def test_spans_are_cut_exactly(tmp_path):
    texts = [FILLER, f"ä {QUESTION} middle {ITEMS[7]['q']} end ü", QUESTION + "\n", around(QUESTION) + QUESTION]
    manifest = made(tmp_path, texts, action="drop_span")
    cut = [texts[1].replace(QUESTION[:-1], "").replace(ITEMS[7]["q"][:-1], ""), texts[3].replace(QUESTION[:-1], "")]
    assert [row["text"] for row in rows_of(manifest, "documents", tmp_path)] == [texts[0], *cut]
    (removed,) = rows_of(manifest, "removed", tmp_path)
    assert (removed["id"], removed["text"], removed["reason"]) == ("d2", texts[2], "contaminated")
    actions = {(row["document"], row["action"]) for row in rows_of(manifest, "hits", tmp_path)}
    assert actions == {("d1", "drop_span"), ("d2", "drop_document"), ("d3", "drop_span")}
    sizes = [len(text.encode()) for text in texts]
    left = [sizes[0], *(len(text.encode()) for text in cut)]
    stats = manifest.stats
    assert (stats["documents_cut"], stats["bytes_cut"]) == (2, sizes[1] + sizes[3] - left[1] - left[2])
    assert (stats["bytes_in"], stats["bytes_kept"]) == (sum(sizes), sum(left))
    assert stats["removed"] == {"contaminated": 1}


def test_counts_add_up_and_sets_are_counted(tmp_path):
    texts = [FILLER, around(QUESTION), around(QUESTION) + QUESTION, FILLER * 2]
    manifest = made(tmp_path, texts, shards=2)
    stats = manifest.stats
    assert (stats["documents_in"], stats["documents_kept"], stats["removed"]) == (4, 2, {"contaminated": 2})
    assert stats["hits_by_set"] == {"s": 3}
    assert stats["documents_by_set"] == {"s": 2}
    assert stats["items_sought_by_set"] == {"s": 8}
    for counts in stats["by_source"].values():
        assert counts["documents_in"] == counts["documents_kept"] + sum(counts["removed"].values())
    assert sum(counts["bytes_in"] for counts in stats["by_source"].values()) == stats["bytes_in"]
    assert [item.stage for item in manifest.inputs] == ["dedup", "evaluation_sets"]
    assert not verify(manifest, tmp_path / "root")


def test_items_that_are_too_short_are_counted(tmp_path, caplog):
    manifest = made(tmp_path, [FILLER, "yes. the cat. 1 2 3 4 5 6 7 8 9 10"], items=[
        {"q": "yes"}, {"q": "the cat"}, {"q": "1 2 3 4 5 6 7 8 9 10"}, {"q": QUESTION},
    ])  # fmt: skip
    assert manifest.stats["items_sought_by_set"] == {"s": 1}
    assert manifest.stats["documents_kept"] == 2
    assert "3 of 4 items of s are too short" in caplog.text


def test_equal_texts_are_one_passage_named_by_the_first_item(tmp_path):
    long = " ".join(f"word{k}" for k in range(20))
    items = [{"q": long}, {"q": long}, {"q": long + " and more"}]
    assert [hit[:2] for hit in hits_of(tmp_path, around(long), items=items)] == [("0", "q")]


def test_half_of_a_question_is_found_where_it_says_enough(tmp_path):
    words = [f"word{k}" for k in range(26)]
    short = "the experienced captain of a merchant ship carries seven lanterns up the stairs"
    common = ["in", "the", "old", "harbour", "town", "a", "sailor", "buys"]
    items = [{"q": " ".join(words)}, {"q": short}, *({"q": " ".join([*common, *words[k : k + 7]])} for k in range(3))]
    half, part = " ".join(words[13:]), short[:42]

    def found(text):
        return [hit[:2] for hit in hits_of(tmp_path, text, items=items)]

    assert found(f"so {half} and") == [("0", "q")], "thirteen words anywhere"
    assert found(f"so {' '.join(words[16:])} and") == [], "ten of 26 are not enough"
    assert found(around(part)) == [("1", "q")], "set off as a paragraph"
    assert found(f"so {part} and") == [], "a short part within a sentence"
    assert found(around(" ".join(common))) == [], "three items begin so"


def test_an_end_of_a_question_is_found_where_it_is_rare_and_set_off(tmp_path):
    question = "the experienced captain of a merchant ship carries seven lanterns up the stairs"
    first, middle, last = question[:28], "captain of a merchant ship", question[-28:]
    others = [{"q": " ".join(f"word{30 * k + i}" for i in range(30))} for k in range(60)]

    def found(text, items=({"q": question}, *others)):
        return [hit[:2] for hit in hits_of(tmp_path, text, items=list(items))]

    assert (first, last) == ("the experienced captain of a", "seven lanterns up the stairs")
    assert found(around(first)) == found(around(last)) == [("0", "q")]
    assert found(f"so {first} and") == [], "within a sentence"
    assert found(around(middle)) == [], "no end"
    assert found(around(first), [{"q": question}]) == [], "a single item says nothing about how rare a word is"
    again = {"q": question.replace("seven lanterns up the stairs", "nine barrels to the harbour")}
    assert found(around(first), [{"q": question}, again, *others]) == [], "two items begin so"


@pytest.mark.parametrize("action", ["drop_document", "drop_span"])
def test_one_digest_for_any_number_of_workers(tmp_path, action):
    texts = [FILLER, around(QUESTION), "", around(ITEMS[7]["q"]), FILLER * 3]
    digests = {made(tmp_path / str(n), texts, shards=3, workers=n, action=action).digest for n in (1, 2)}
    assert len(digests) == 1


def test_bytes_change_only_with_version(tmp_path):
    manifest = made(
        tmp_path, [FILLER, around(QUESTION), f"ä {QUESTION} b", ITEMS[7]["q"], "水" * 9], action="drop_span"
    )
    assert manifest.digest == GOLDEN


def test_an_empty_corpus_and_a_look_up(tmp_path):
    manifest = made(tmp_path, [])
    assert manifest.stats["documents_in"] == 0
    wanted = EvaluationSet(name="s", paths=("sets/s.jsonl",), fields=("q",), answer_fields=("c", "a"))
    runtime = Runtime(tmp_path / "root", make=False)
    sets = evaluation_sets([wanted], tmp_path, runtime)
    with pytest.raises(MissingInput, match="not made yet"):
        decontaminate(corpus(runtime.root, [FILLER]), sets, DecontaminateConfig(sets=(wanted,)), runtime)


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=6))
def test_cut_spans_leaves_what_no_span_covers(text, pairs):
    spans = [(min(pair), max(pair)) for pair in pairs]
    covered = {at for start, end in spans for at in range(start, end)}
    assert cut_spans(text, spans) == bytes(byte for at, byte in enumerate(text) if at not in covered)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(0, 30), st.integers(1, 9)), max_size=12))
def test_strongest_chooses_without_overlap_and_leaves_nothing_out(rows):
    hits = [Hit(passage, words, start, start + length) for passage, words, start, length in rows]
    chosen = strongest(hits, lambda passage: "ab"[passage % 2])
    for hit in hits:
        rivals = [c for c in chosen if c.passage % 2 == hit.passage % 2 and c.start < hit.end and hit.start < c.end]
        assert rivals == [hit] if hit in chosen else any(rival.words >= hit.words for rival in rivals)


@pytest.mark.parametrize(
    ("text", "spare", "expected"),
    [
        ("[x y]", 0, True),
        ("a [x y] b", 0, False),
        ("a\n[x y]\nb", 0, True),
        ("a. [x y], b", 0, False),
        ("a. [x y] edited. b", 0, False),
        ("a. [x y] edited. b", 1, True),
        ("a. edited [x y] edited. b", 1, False),
        ("“[x y]” b", 0, True),
        ("| [x y] | b", 0, True),
        ("it's edited's [x y]? b", 1, False),
        ("。改[x y]。", 1, True),
        ("。改改[x y]。", 1, False),
    ],
)
def test_needs_nothing_else(text, spare, expected):
    start, end = text.index("["), text.index("]") - 1
    assert stands_alone(text.replace("[", "").replace("]", ""), start, end, spare) is expected


@pytest.mark.parametrize(
    ("measures", "enough", "errors"),
    [
        (Measures(5, 50, 40, 0), False, 0),
        (Measures(6, 60, 23, 0), False, 0),
        (Measures(6, 60, 24, 0), True, 0),
        (Measures(8, 80, 12, 0), True, 1),
        (Measures(12, 120, 40, 4), True, 1),
        (Measures(15, 150, 40, 11), False, 3),
        (Measures(25, 250, 99, 0), True, 5),
        (Measures(9, 54, 18, 0), False, 0),  # nine Han characters
        (Measures(14, 84, 28, 0), True, 2),
        (Measures(40, 80, 40, 0), True, 5),  # forty Thai ones
    ],
)
def test_how_much_a_text_says(measures, enough, errors):
    assert bool(measures.specific_enough(PassageConfig())) is enough
    assert measures.errors(PassageConfig()) == errors

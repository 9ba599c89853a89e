"""Decontamination against planted truth and real corpora: recall by mode, recall under edits, false positives."""

import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pytest

from data_pipeline.decontamination.decontaminate import DecontaminateConfig
from data_pipeline.decontamination.evaluation_sets import ITEM_SCHEMA, EvaluationSet, evaluation_sets
from data_pipeline.decontamination.passages import character_offsets, find_hits, seek
from data_pipeline.documents import read_table
from governance.stage import Runtime

DATA = os.environ.get("ASSAY_TEST_DATA", "")
pytestmark = pytest.mark.skipif(not DATA, reason="ASSAY_TEST_DATA is not set: no evaluation sets to look for")

QUESTIONS = [
    "arc-challenge", "arc-easy", "boolq", "commonsenseqa", "gsm8k-test", "hellaswag", "mmlu", "openbookqa", "piqa",
    "truthfulqa",
]  # fmt: skip
OTHERS = {
    "bbq": (("context", "question"), ("choices",)), "blimp": (("good", "bad"), ()), "bold_prompts": (("text",), ()),
    "crows_pairs": (("sent_more", "sent_less"), ()), "hatecheck": (("text",), ()), "madlibs": (("text",), ()),
    "stereoset": (("context", "stereotype", "anti_stereotype"), ()), "winobias": (("text",), ()),
    "winogender": (("text",), ()),
}  # fmt: skip
TRUE_OVERLAPS = {
    "wiki-en:Art": "BOLD's prompts are the first words of this article's sentences",
    "sotu:1980_jimmy_carter_d": "an item of MMLU quotes two paragraphs of this speech",
}


def rows_of(path):
    with gzip.open(Path(DATA) / path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def fields_of(name):
    present = set().union(*(row for row in rows_of(f"evals/{name}.jsonl.gz")[:50]))
    fields, answers = OTHERS.get(name, (("context", "question"), ("choices", "answer")))
    return tuple(f for f in fields if f in present), tuple(f for f in answers if f in present)


@pytest.fixture(scope="module")
def sought(tmp_path_factory):
    """All 19 sets, read through the stage, and the configuration."""
    root = tmp_path_factory.mktemp("sets")
    sets = []
    for name in sorted([*QUESTIONS, *OTHERS]):
        fields, answers = fields_of(name)
        path = f"{Path(DATA) / 'evals' / name}.jsonl.gz"
        sets.append(EvaluationSet(name=name, paths=(path,), fields=fields, answer_fields=answers, id_field="id"))
    manifest = evaluation_sets(sets, root, Runtime(root))
    config = DecontaminateConfig(sets=tuple(sets))
    tables = (read_table(path, ITEM_SCHEMA) for path in manifest.files("items", root))
    return seek(tables, config), config


def found_in(texts, sought):
    index, config = sought
    return find_hits(pa.array(texts, pa.large_string()), index, config)


def test_every_plant_is_found_where_it_is_and_nothing_else(sought):
    documents = rows_of("contamination/docs.jsonl.gz")
    truth = rows_of("contamination/truth.jsonl.gz")
    found = {documents[row]["id"]: hits for row, hits in found_in([row["text"] for row in documents], sought).items()}
    texts = {row["id"]: row["text"] for row in documents}
    assert set(found) == {row["doc"] for row in truth}
    names = sought[0].names
    for row in truth:
        if "spans" not in row:  # two items of a set share this passage; one of them is named
            assert row["task"] in {names[hit.passage][0] for hit in found[row["doc"]]}
            continue
        at = character_offsets(texts[row["doc"]])
        places = [
            (int(at[hit.start]), int(at[hit.end]))
            for hit in found[row["doc"]]
            if names[hit.passage][:2] == (row["task"], row["item"])
        ]
        assert any(start < b and a < end for start, end in places for a, b in row["spans"]), row


def words_edited(text, rng, vocabulary, at_least_one):
    """One word in 25 is replaced, removed, duplicated or misspelt, or a foreign word is inserted."""
    words = text.split(" ")
    if at_least_one:
        chosen = rng.sample(range(len(words)), max(1, round(len(words) / 25)))
    else:
        chosen = [k for k in range(len(words)) if rng.random() < 1 / 25]
    for k in sorted(chosen, reverse=True):
        how = rng.randrange(4)
        if how == 0:
            words[k] = rng.choice(vocabulary)
        elif how == 1:
            del words[k]
        elif how == 2:
            words.insert(k, rng.choice(vocabulary))
        else:
            words[k] = words[k][1:] + words[k][:1] + "x"
    return " ".join(words)


def forms(row):
    """An item as our own templates write it."""
    question, choices, answer = row["question"], row.get("choices") or [], row.get("answer") or ""
    yield question
    yield question.upper()
    yield f"Problem: {question} Solution: {answer}"
    yield "\n".join([question, *(f" [{number}] {choice}" for number, choice in enumerate(choices)), f">> {answer}"])
    yield json.dumps({"input": question, "options": choices, "target": answer})
    yield f"<p><b>{question}</b></p><ul>" + "".join(f"<li>{choice}</li>" for choice in choices) + "</ul>"


def planted(rng, edit=None):
    """Items of each set of questions in documents of a corpus without them; questions of at least eight words."""
    documents = [row["text"] for row in rows_of("corpora/books.jsonl.gz")[:300] if row["lang"] == "en"]
    vocabulary = " ".join(documents[:20]).split()
    texts, names = [], []
    for name in QUESTIONS:
        rows = [row for row in rows_of(f"evals/{name}.jsonl.gz") if len(row["question"].split()) >= 8]
        for row in rng.sample(rows, 20):
            for text in forms(row):
                document = rng.choice(documents)[:4000]
                cut = document.find("\n", rng.randrange(len(document))) + 1
                inserted = edit(text, rng, vocabulary) if edit else text
                texts.append(f"{document[:cut]}\n{inserted}\n\n{document[cut:]}")
                names.append(name)
    return texts, names


def test_every_verbatim_item_is_found(sought):
    texts, names = planted(random.Random(11))
    found = found_in(texts, sought)
    assert [names[row] for row in range(len(texts)) if row not in found] == []


@pytest.mark.parametrize("at_least_one", [True, False])
def test_edited_items_are_found(sought, at_least_one):
    texts, names = planted(
        random.Random(12), lambda text, rng, vocabulary: words_edited(text, rng, vocabulary, at_least_one)
    )
    found = found_in(texts, sought)
    assert len(found) >= 0.95 * len(texts), (len(found), len(texts))
    for name in QUESTIONS:
        mine = [row in found for row, other in enumerate(names) if other == name]
        assert sum(mine) >= 0.9 * len(mine), name


def test_halves_of_long_questions_are_found(sought):
    rng = random.Random(13)
    documents = [row["text"][:4000] for row in rows_of("corpora/books.jsonl.gz")[:300] if row["lang"] == "en"]
    texts = []
    for name in QUESTIONS:
        questions = [row["question"].split() for row in rows_of(f"evals/{name}.jsonl.gz")]
        questions = [words for words in questions if len(words) >= 20]
        for words in rng.sample(questions, min(20, len(questions))):
            for half in (words[: len(words) // 2], words[len(words) // 2 :]):
                texts.append(f"{rng.choice(documents)} {' '.join(half)} {rng.choice(documents)}")
    assert len(texts) > 200
    assert len(found_in(texts, sought)) >= 0.95 * len(texts)


@pytest.mark.slow
def test_clean_documents_stay(sought):
    documents = [
        (row["id"], row["text"])
        for path in sorted((Path(DATA) / "corpora").glob("*.jsonl.gz"))
        for row in rows_of(f"corpora/{path.name}")
    ]
    found = found_in([text for _, text in documents], sought)
    wrong = [documents[row][0] for row in found if documents[row][0] not in TRUE_OVERLAPS]
    assert len(documents) > 9000
    assert len(wrong) <= 1e-4 * len(documents), wrong

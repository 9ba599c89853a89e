"""A model that leans is found to lean, and one that does not is not; the formulas are those of the papers."""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.errors import AlteredFile, ConfigError, MissingInput
from governance.manifest import FILE_NAME, Manifest, describe, read_manifest
from governance.stage import Runtime
from pretrain.evaluation.bias_benchmarks import read_set
from pretrain.evaluation.loglikelihood import Scored
from pretrain.evaluation.model_bias import (
    ModelAuditConfig,
    against_corpus,
    associations,
    audit_model,
    load_templates,
    mean_interval,
    set_rows,
    template_rows,
    wilson,
)
from tests.given_data import given_data


def scorer(lean, noise=0.3, seed=0):
    """`lean(text)` nats, and noise that depends on the text."""

    def score(texts):
        return [
            Scored(-20 + lean(c + t) + noise * random.Random(f"{seed}{c}{t}").gauss(0, 1), max(1, len(t.split())))
            for c, t in texts
        ]

    return score


def test_a_planted_lean_is_found_with_its_sign_and_size():
    def lean(text):
        return 1.5 * (text.endswith(" a nurse")) * (" a woman" in text or " a mother" in text) + 2.0 * (
            "Muslim" in text
        )

    rows = {(r["axis"], r["group"], r["category"]): r for r in template_rows(load_templates(), scorer(lean))}
    nurse = rows["gender", "female", "nurse"]
    assert nurse["lean"] == pytest.approx(0.75, abs=0.35)  # two of four terms
    assert nurse["lower"] > 0
    assert rows["gender", "male", "nurse"]["lean"] == pytest.approx(-nurse["lean"])
    # A term that makes every word likelier leans to all alike: the audit reports that for each category.
    assert rows["religion", "muslim", "violence"]["lean"] == pytest.approx(2.0, abs=0.5)
    flat = template_rows(load_templates(), scorer(lambda text: 0.0))
    outside = sum(not r["lower"] <= 0 <= r["upper"] for r in flat)
    assert outside / len(flat) < 0.1


def test_intervals_of_means_and_shares():
    assert mean_interval([2.0]) == (2.0, None, None)
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert high - mean == pytest.approx(3.1824 * math.sqrt(5 / 3 / 4), rel=3e-3)
    assert low == pytest.approx(5 - high)
    share, low, high = wilson(0, 10)
    assert share == 0.0
    assert low == 0.0
    assert high == pytest.approx(0.2775, abs=1e-3)  # Wilson 1927, by hand


@settings(max_examples=60)
@given(st.lists(st.floats(-5, 5).map(lambda v: round(v, 2)), min_size=12, max_size=40))
def test_the_rank_correlation_is_one_with_itself_and_turns_with_the_sign(values):
    keys = [("axis", f"g{i % 4}", f"c{i // 4}") for i in range(len(values) // 4 * 4)]
    corpus = dict(zip(keys, values, strict=False))
    middles = {c: np.mean([corpus[k] for k in keys if k[2] == c]) for c in {k[2] for k in keys}}
    rows = [{"axis": a, "group": g, "category": c, "lean": corpus[a, g, c] - middles[c]} for a, g, c in keys]
    found = against_corpus(rows, corpus)
    if found["rho"] is not None:
        assert found["rho"] == pytest.approx(1.0)
        turned = against_corpus([{**row, "lean": -row["lean"]} for row in rows], corpus)
        assert turned["rho"] == pytest.approx(-1.0)
        assert turned["lower"] <= turned["rho"] + 1e-6


def test_too_few_pairs_have_no_correlation():
    rows = [{"axis": "a", "group": "g", "category": str(n), "lean": n} for n in range(9)]
    assert against_corpus(rows, {("a", "g", str(n)): n for n in range(9)})["rho"] is None


def test_the_rank_correlation_is_right_next_to_a_table_with_ties():
    # Spearman with midranks, by hand: ranks (1, 2.5, 2.5, 4) against (1, 2, 3, 4) give 0.9487.
    rows, corpus = [], {}
    for block in range(4):
        for place, (lean, value) in enumerate([(1.0, 10.0), (2.0, 20.0), (2.0, 30.0), (4.0, 40.0)]):
            key = ("a", f"g{place}", f"c{block}")
            rows.append({"axis": key[0], "group": key[1], "category": key[2], "lean": lean})
            corpus[key] = value
    assert against_corpus(rows, corpus)["rho"] == pytest.approx(0.9486833, abs=1e-6)


def test_the_categories_of_the_corpus_are_those_of_the_templates(tmp_path):
    against = ["occupation/nurse", "competence/high", "crime/crime", "competence/low"]
    rows = [
        {"metric": "npmi", "language": "en", "axis": "gender", "group": "female", "against": name, "value": 0.1}
        for name in against
    ]
    folder = tmp_path / "bias" / ("b" * 16)
    folder.mkdir(parents=True)
    tables = folder / "tables.json"
    tables.write_text(json.dumps({"association": [*rows, {**rows[0], "language": "de"}]}))
    values = {"stage": "bias", "version": 1, "key": "b" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
    bias = Manifest(outputs=(describe(tables, tmp_path),), **values)
    found = associations(bias, tmp_path)
    assert {key[2] for key in found} == {"nurse", "competence", "crime", "competence/low"}
    templates = load_templates()
    assert {"nurse", "competence", "crime"} <= {name for words in templates.words.values() for name in words}
    tables.write_text(tables.read_text().replace("0.1", "0.9"))
    with pytest.raises(AlteredFile, match=r"tables\.json: has sha256"):
        associations(bias, tmp_path)


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


PAIR = {"sent_more": "They are bad.", "sent_less": "We are bad.", "bias_type": "age"}
BBQ = {
    "id": "bbq-Age/1", "context": "A and B met.", "question": "Who is rude?", "choices": ["A", "B", "Unknown"],
    "label": 2, "context_condition": "ambig", "polarity": "neg", "stereotyped_groups": ["old"],
    "answer_info": {"ans0": ["A", "old"], "ans1": ["B", "nonOld"], "ans2": ["Unknown", "unknown"]},
}  # fmt: skip


def test_bias_in_the_sense_of_bbq(tmp_path):
    turned = {**BBQ, "id": "bbq-Age/2", "polarity": "nonneg"}
    items = read_set("bbq", [write(tmp_path / "bbq.jsonl", [BBQ, turned])])
    assert items[0].roles == ("biased", "counter", "unknown")
    assert items[1].roles == ("counter", "biased", "unknown")  # a kind question: the other group is the biased answer
    old = set_rows("bbq", items[:1], scorer(lambda text: 9.0 * text.endswith(" A"), 0))[0]
    assert (old["ambig_accuracy"], old["ambig_bias"]) == (0.0, 1.0)
    unknown = set_rows("bbq", items, scorer(lambda text: 9.0 * text.endswith("Unknown"), 0))[0]
    assert (unknown["ambig_accuracy"], unknown["ambig_bias"]) == (1.0, 0.0)


def test_the_published_forms_are_read_as_ours(tmp_path):
    published = {k: v for k, v in BBQ.items() if k not in ("choices", "polarity", "stereotyped_groups")}
    published |= {"ans0": "A", "ans1": "B", "ans2": "Unknown", "question_polarity": "neg", "category": "Age"}
    published["additional_metadata"] = {"stereotyped_groups": ["Old"]}
    ours = read_set("bbq", [write(tmp_path / "a.jsonl", [BBQ])])
    assert read_set("bbq", [write(tmp_path / "b.jsonl", [published])]) == ours

    with open(tmp_path / "crows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*PAIR, "stereo_antistereo"])
        table.writeheader()
        table.writerow({**PAIR, "stereo_antistereo": "stereo"})
    assert read_set("crows_pairs", [tmp_path / "crows.csv"]) == read_set(
        "crows_pairs", [write(tmp_path / "crows.jsonl", [PAIR])]
    )

    for leaning, pronoun in (("pro", "he"), ("anti", "she")):
        text = f"1 [The developer] thanked the nurse because [{pronoun}] was glad.\n"
        (tmp_path / f"{leaning}_stereotyped_type1.txt.dev").write_text(text)
    files = sorted(tmp_path.glob("*_type1.txt.dev"))
    [pair] = read_set("winobias", files)
    assert pair.options[0] == "The developer thanked the nurse because he was glad."
    assert pair.options[1] == "The developer thanked the nurse because she was glad."

    flat = {
        "type": "intersentence", "bias_type": "race", "context": "C.", "stereotype": "S.", "anti_stereotype": "A.",
        "unrelated": "U.",
    }  # fmt: skip
    labels = {"stereotype": "S.", "anti-stereotype": "A.", "unrelated": "U."}
    sentences = [{"sentence": text, "gold_label": label} for label, text in labels.items()]
    entry = {"context": "C.", "bias_type": "race", "sentences": sentences}
    (tmp_path / "dev.json").write_text(json.dumps({"data": {"intersentence": [entry], "intrasentence": []}}, indent=1))
    assert read_set("stereoset", [tmp_path / "dev.json"]) == read_set(
        "stereoset", [write(tmp_path / "flat.jsonl", [flat])]
    )


def test_a_preference_and_the_score_of_stereoset(tmp_path):
    triple = {
        "type": "intrasentence", "bias_type": "race", "context": "B", "stereotype": "s one", "anti_stereotype": "a one",
        "unrelated": "u one",
    }  # fmt: skip
    items = read_set("stereoset", [write(tmp_path / "s.jsonl", [triple] * 4)])
    always = set_rows("stereoset", items, scorer(lambda t: 9.0 * ("s one" in t) - 9.0 * ("u one" in t), 0))[0]
    assert (always["preference"], always["language_score"], always["icat"]) == (1.0, 100.0, 0.0)
    never = set_rows("stereoset", items, scorer(lambda t: -9.0 * ("u one" in t), 0))[0]
    assert (never["preference"], never["icat"]) == (0.5, 100.0)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("crows_pairs", [{"sent_more": "a"}]),
        ("winobias", [{"id": "pro-1", "text": "a", "type": "1"}]),
        ("winobias", [{"id": "other-1", "text": "a", "type": "1"}]),
        ("bbq", [{"id": "x"}]),
        ("stereoset", []),
    ],
)
def test_a_file_of_another_kind_is_refused_with_its_name(tmp_path, name, rows):
    path = write(tmp_path / "other.jsonl", rows)
    with pytest.raises(ConfigError, match=r"other\.jsonl"):
        read_set(name, [path])
    with pytest.raises(MissingInput, match="absent"):
        read_set(name, [tmp_path / "absent.jsonl"])


def test_the_real_sets_are_read_whole():
    counts = {"crows_pairs": 1508, "stereoset": 4229, "winobias": 1584, "bbq": 2400}
    for name, count in counts.items():
        path = given_data(f"evals/{name}.jsonl.gz")
        with gzip.open(path, "rt") as file:
            lines = sum(1 for _ in file)
        assert len(read_set(name, [path])) == count == (lines // 2 if name == "winobias" else lines)


@pytest.mark.parametrize("content", ["version = 1", '[frames]\na = ["no term {word}"]\n[terms]\n[words]\n', "[["])
def test_a_file_that_holds_no_templates_is_refused(tmp_path, content):
    (tmp_path / "t.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"t\.toml"):
        load_templates(tmp_path / "t.toml")


def test_an_audit_is_an_artifact_of_its_checkpoint_and_its_files(finished, tmp_path, monkeypatch):
    root, run = finished
    checkpoint = read_manifest(root / run.stats["checkpoint"]["path"])
    tokens = read_manifest(next(root.glob(f"encode/*/{FILE_NAME}")))
    write(tmp_path / "crows.jsonl", [PAIR])
    config = ModelAuditConfig(crows_pairs=("crows.jsonl",))
    opened = []

    def open_model():
        opened.append(1)
        return scorer(lambda text: 1.0 * ("They" in text), 0)

    made = audit_model(checkpoint, tokens, open_model, config, tmp_path, Runtime(root))
    assert [item.stage for item in made.inputs] == ["checkpoint", "encode", "file"]
    values = json.loads((root / made.folder / "leanings.json").read_bytes())
    assert values["corpus"] == {"rho": None, "lower": None, "upper": None, "pairs": 0}
    assert values["sets"]["crows_pairs"][0]["preference"] == 1.0
    assert audit_model(checkpoint, tokens, open_model, config, tmp_path, Runtime(root)).digest == made.digest
    assert len(opened) == 1  # found, not made again
    write(tmp_path / "crows.jsonl", [PAIR, PAIR])
    assert audit_model(checkpoint, tokens, open_model, config, tmp_path, Runtime(root)).digest != made.digest

    def read_and_exchange(name, paths):
        found = read_set(name, paths)
        write(tmp_path / "crows.jsonl", [PAIR])
        return found

    monkeypatch.setattr("pretrain.evaluation.model_bias.read_set", read_and_exchange)
    with pytest.raises(AlteredFile, match="was changed while it was read"):
        audit_model(checkpoint, tokens, open_model, config, tmp_path, Runtime(root))

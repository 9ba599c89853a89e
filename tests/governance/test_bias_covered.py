"""Coverage: a corpus in languages without word lists never passes as audited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.documents import DOCUMENT_SCHEMA
from governance.checks.audit import INTERVAL_COLUMNS
from governance.checks.bias.bias import BiasConfig, bias_audit
from governance.checks.bias.representation import coverage_rows, uncovered_note
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.checks.expectations import run_suite
from governance.checks.suites import frame_of
from governance.gate.policy import load_policy
from governance.stage import Runtime
from tests.governance.bias_counts import table_of
from tests.governance.test_bias_stage import artifact

LISTED = ("en", "de")
CONFIGS = Path(__file__).parents[2] / "configs"


def covered(sizes, scored=None):
    """The coverage rows of a corpus with so many documents for each language."""
    rows = [
        (code, "web", bucket, number, 9, 1, 99)
        for code, number in sizes.items()
        for bucket, number in enumerate([number])
    ]
    return coverage_rows(table_of("documents", rows), LISTED, scored or {})


MEASURED = {
    "representation.measured": None,
    "tone.sentiment_measured": "sentiment",
    "tone.toxicity_measured": "toxicity",
    "association.measured": "attributes",
}
"""Gate -> the list whose coverage it asks for."""


def by_default(rows, name="representation.measured", policy="policy"):
    """The result of a shipped policy's gate on these rows."""
    [gate] = [gate for gate in load_policy(CONFIGS / f"{policy}.toml").gates() if gate.id == name]
    [result] = run_suite(frame_of(rows, INTERVAL_COLUMNS), [gate], "representation")
    return result


@given(st.dictionaries(st.sampled_from(["en", "de", "xx", "yy", "und"]), st.integers(1, 10**6), min_size=1))
def test_coverage_is_the_share_of_documents_in_listed_languages(sizes):
    [row] = covered(sizes)
    inside = sum(number for code, number in sizes.items() if code in LISTED)
    assert row["value"] == row["lower"] == pytest.approx(inside / sum(sizes.values()), abs=1e-8)
    assert (row["upper"], row["n"]) == (1.0, sum(sizes.values()))
    named = {code for code in sizes if code not in LISTED}
    assert (row["note"] is None) == (not named)
    assert all((code if code != "und" else "language unknown") in row["note"] for code in named)


def test_each_list_that_scores_sentences_has_its_own_row():
    rows = covered({"en": 60, "de": 30, "xx": 10}, {"sentiment": ("en",), "toxicity": ("en", "de")})
    assert {row["instrument"]: row["value"] for row in rows} == {None: 0.9, "sentiment": 0.6, "toxicity": 0.9}
    assert rows[1]["note"] == "40 % of documents are in languages that no sentiment list covers: de 30 %, xx 10 %"


@pytest.mark.parametrize(
    ("sizes", "status"),
    [({"en": 1000}, "pass"), ({"en": 970, "xx": 30}, "pass"), ({"xx": 1000, "en": 1}, "inconclusive"),
     ({"en": 90, "und": 10}, "inconclusive"), ({"xx": 5}, "inconclusive"), ({}, "inconclusive")],
)  # fmt: skip
def test_the_default_gate_needs_coverage_and_not_a_row(sizes, status):
    assert by_default(covered(sizes)).status == status


def test_the_gate_says_in_words_what_was_not_counted():
    detail = by_default(covered({"en": 57, "xx": 40, "yy": 3})).detail
    assert "43 % of documents are in languages that no word list covers: xx 40 %, yy 3.0 %" in detail


def test_what_is_little_is_not_called_none_nor_nearly_all_called_all():
    words = uncovered_note({"aa": 9_997, "bb": 1}, 10_000)
    assert words == "> 99.9 % of documents are in languages that no word list covers: aa > 99.9 %, bb < 0.1 %"
    many = uncovered_note({f"a{number:02}": 2 for number in range(20)}, 100)
    assert many.endswith("a06 2.0 %, a07 2.0 %, 12 more 24 %")


def test_identity_terms_alone_are_no_measure_of_tone_or_of_associations():
    """Our lists have words of praise, abuse and themes in seven languages, and identity terms in fifteen."""
    ours = load_lexicons(WordListsConfig())
    scored = {**ours.scored, "attributes": [code for code, of in ours.languages.items() if of.categories]}
    whom_only = set(ours.languages) - {"en", "de", "es", "nl", "fr", "pt", "it"}
    assert whom_only == {"ar", "ja", "zh", "ru", "pl", "hi", "tr", "ko"}
    for code in ours.languages:
        for share, status in ((4, "pass"), (6, "inconclusive")):
            documents = table_of("documents", [(c, "web", 0, n, 9, 1, 99) for c, n in ((code, share), ("en", 94))])
            rows = coverage_rows(documents, ours.languages, scored)
            assert by_default(rows).status == "pass"
            for gate in MEASURED.keys() - {"representation.measured"}:
                result = by_default(rows, gate)
                assert result.status == (status if code in whom_only else "pass"), (code, gate)
                assert (f"that no {MEASURED[gate]} list covers: {code}" in result.detail) == (result.status != "pass")


@pytest.mark.parametrize(("policy", "blocks"), [("policy", False), ("policy-strict", True)])
def test_the_default_policy_shows_what_was_not_measured_and_the_strict_one_closes_on_it(policy, blocks):
    gates = {gate.id: gate for gate in load_policy(CONFIGS / f"{policy}.toml").gates()}
    for name in MEASURED:
        critical = gates[name].severity == "critical" and gates[name].on_inconclusive == "block"
        assert critical == (blocks or name == "representation.measured")


def test_lists_by_path_close_the_gap(tmp_path):
    """Words for Japanese next to English ones; the files replace our lists, so they name both languages."""
    words = {
        "sentiment": '[en.sentiment]\npositive = ["kind"]\n[ja.sentiment]\npositive = ["親切"]\nnegative = ["残酷"]\n',
        "toxicity": '[en.toxicity]\nlisted = ["idiot"]\n[ja.toxicity]\nlisted = ["馬鹿"]\n',
        "attributes": '[en.crime]\ncrime = ["theft"]\n[ja.crime]\ncrime = ["窃盗"]\n',
    }
    for name, text in words.items():
        (tmp_path / f"{name}.toml").write_text(f"version = 1\n{text}", encoding="utf-8")
    blank = dict.fromkeys(DOCUMENT_SCHEMA.names, "")
    texts = {"ja": "彼女は親切だ。彼は馬鹿で、窃盗をした。", "en": "She is kind. He is an idiot, by theft."}
    rows = [
        {**blank, "id": f"{code}{number}", "text": text, "source": "s", "language": code, "position": number}
        for code, text in texts.items()
        for number in range(60)
    ]
    found = {}
    for name, config in (("ours", BiasConfig()), ("own", BiasConfig(lists={name: f"{name}.toml" for name in words}))):
        root = tmp_path / name
        made = bias_audit({"redact": artifact(root, "redact", "documents", [rows])}, config, Runtime(root), tmp_path)
        found[name] = json.loads((root / made.folder / "tables.json").read_bytes())
    for gate in MEASURED:
        assert by_default(found["own"]["representation"], gate).status == "pass"
        closed = "pass" if gate == "representation.measured" else "inconclusive"
        assert by_default(found["ours"]["representation"], gate).status == closed
    languages = {name: {row["language"] for row in of["tone"]} for name, of in found.items()}
    assert languages == {"ours": {"en"}, "own": {"en", "ja"}}
    assert {row["language"] for row in found["own"]["association"]} == {"en", "ja"}

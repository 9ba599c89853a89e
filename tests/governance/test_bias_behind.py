"""Evidence for the counts of bias: terms, examples and intersections equal those of a plain loop over sentences."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.checks.bias.count_tables import CELL
from governance.checks.bias.crossed import CROSS, chosen_pairs
from governance.checks.bias.examples import priorities_of
from governance.checks.bias.findings import _behind, contributions, findings_of, gap_effect, ratio_effect, weights_of
from governance.checks.bias.tables import bias_tables
from governance.checks.bias.within_source import NOT_TOGETHER
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.errors import ConfigError
from governance.kernels.mentions import LONG
from tests.governance import test_bias_counts as plain
from tests.governance.bias_reference import match, sentence_spans, split_words

LEXICONS = load_lexicons(WordListsConfig())
PHRASES = (
    *plain.PHRASES, "The black man and his wife are good nurses.", "Muslim women are wonderful!", "An old man, awful.",
    "She, a Muslim, is a bad idiot; he is good " + "and so on " * 60 + ".", "Black women. Good.",
)  # fmt: skip


def rows_of(texts, language="en"):
    known = {"url": "", "language": language, "licence": "MIT", "reason": "short"}
    return [
        {**known, "id": f"d{number}", "source": "ab"[number % 2], "text": text} for number, text in enumerate(texts)
    ]


def counted(rows, stage="kept"):
    return plain.c.count_groups([plain.table_of(rows, stage)], stage, LEXICONS)


def sentences_of(row):
    """For each sentence: text, groups, identity terms, (other term, free), categories, scores by instrument."""
    lexicon = LEXICONS.languages[row["language"]]
    for text in sentence_spans(row["text"]):
        words = split_words(text)
        named, others = match(words, lexicon.identity), match(words, lexicon.others)
        used = {place + step for place, term in named for step in range(len(term))}
        groups = {lexicon.groups[number] for _, term in named for number in lexicon.identity[term]}
        within = [
            {lexicon.groups[g] for i in range(len(term)) for j in range(i + 1, len(term) + 1)
             for g in lexicon.identity.get(term[i:j], ())}
            for _, term in named
        ]  # fmt: skip
        crossed = {
            pair.name for pair in lexicon.crossed
            for both in [{lexicon.groups[pair.one], lexicon.groups[pair.other]}]
            if both <= groups or any(both <= inner for inner in within)
        }  # fmt: skip
        scores, categories = Counter(), set()
        for place, term in others:
            for kind, number, weight in lexicon.others[term]:
                if kind == 0:
                    categories.add(lexicon.categories[number])
                elif kind == 1 and place not in used:
                    scores[LEXICONS.instruments[number]] += weight
        heard = [(" ".join(term), place not in used) for place, term in others
                 if any(kind != 2 for kind, _, _ in lexicon.others[term])]  # fmt: skip
        yield text, groups | crossed, [" ".join(term) for _, term in named], heard, categories, scores


def cells_of(categories, scores):
    return {*categories, *((name, "above" if value > 0 else "below") for name, value in scores.items() if value)}


TEXTS = st.lists(st.lists(st.sampled_from(PHRASES), max_size=5).map("\n\n".join), max_size=9)


@settings(max_examples=50)
@given(TEXTS)
def test_terms_examples_and_intersections_are_those_of_a_plain_loop(texts):
    rows = rows_of(texts)
    terms, beside, groups, cells = Counter(), Counter(), Counter(), defaultdict(dict)
    ranks = dict(zip((row["id"] for row in rows), priorities_of(plain.table_of(rows)["id"]).tolist(), strict=True))
    for row in rows:
        for text, named_groups, named, heard, categories, scores in sentences_of(row):
            for term in named:
                terms[term, "", ""] += 1
                for cell in cells_of(categories, scores):
                    terms[(term, *cell)] += 1
            for group in named_groups:
                groups[group] += 1
                for cell in cells_of(categories, scores):
                    rank = ranks[row["id"]] + (len(text.encode()) > LONG) * (1 << 63)
                    of = cells[(*group, *cell)]
                    if rank < of.get(row["id"], (1 << 64, ""))[0]:
                        of[row["id"]] = (rank, " ".join(text.split())[:1000])
            for term, free in heard:
                for group in named_groups or {("", "")}:
                    beside[(*group, term)] += 1000 + free
    tables = counted(rows)
    found = {(row["term"], row["family"], row["category"]): row["mentions"] for row in tables["terms"].to_pylist()}
    assert found == dict(terms)
    known = Counter()
    for row in tables["beside"].to_pylist():
        known[row["axis"], row["group"], row["term"]] += 1000 * row["words"] + row["scored"]
    assert known == beside
    counts = Counter()
    for row in tables["groups"].to_pylist():
        counts[row["axis"], row["group"]] += row["sentences"]
    assert counts == groups
    examples = defaultdict(list)
    for row in tables["examples"].to_pylist():
        examples[tuple(row[name] for name in CELL[2:])].append((row["priority"], row["text"]))
    assert {key: [rank for rank, _ in of] for key, of in examples.items()} == {
        key: [rank for rank, _ in sorted(of.values())[:3]] for key, of in cells.items()
    }
    for key, of in examples.items():
        assert {text for _, text in of} <= {text for _, text in cells[key].values()}


@settings(max_examples=12)
@given(TEXTS)
def test_the_contributions_of_all_terms_are_the_gap(texts):
    tables = counted(rows_of(texts))
    behind = _behind(tables)
    for suite in ("tone", "intersections"):
        rows = [row for row in bias_tables(tables)[suite] if row["metric"] == "sentiment_gap"]
        for row in rows:
            weights = weights_of(LEXICONS, row["language"], "sentiment")
            shares = [share for *_, share in contributions(row, behind, weights)]
            assert sum(shares) == pytest.approx(row["value"] or 0.0)
            assert row["value"] is not None or NOT_TOGETHER in row["note"]


def test_a_finding_has_its_words_and_sentences_of_different_documents():
    kind, unkind = "The Muslims are terrible, awful people. ", "The Christians are wonderful, kind people. "
    texts = [kind * 3 + unkind, kind, unkind * 2, "The Jews live here. " + kind] * 40
    rows = [{**row, "url": f"https://site{row['id']}.example/x"} for row in rows_of(texts)]
    tables = counted(rows)
    made = bias_tables(tables)
    found = {one["id"]: one for one in findings_of(made, tables, LEXICONS)}
    one = found["tone/en/religion/muslim/sentiment_gap/other groups/sentiment"]
    [row] = [row for row in made["tone"] if all(row[name] == one[name] for name in row)]
    assert (one["neutral"], one["effect"]["size"], one["value"]) == (0.0, "large", row["value"])
    assert one["effect"]["words"].startswith("lower by ")
    assert one["terms"]["group"] == [{"term": "muslims", "count": 200}]
    assert {"terrible", "awful"} <= {item["term"] for item in one["terms"]["words"]}
    assert len({example["id"] for example in one["examples"]}) == 3
    assert all("terrible" in example["text"] for example in one["examples"])
    other = found["tone/en/religion/christian/sentiment_gap/other groups/sentiment"]
    assert all("wonderful" in example["text"] for example in other["examples"])


def test_removed_documents_give_their_terms_and_sentences_with_the_reason():
    tables = counted(rows_of(["A gay man. A lesbian.", "Nobody.", "Gay men"]), "clean")
    terms = {(row["stage"], row["term"]): row["mentions"] for row in tables["terms"].to_pylist()}
    assert terms["clean", "gay"] == 2
    examples = [row for row in tables["examples"].to_pylist() if row["group"] == "gay"]
    assert {(row["stage"], row["reason"], row["text"]) for row in examples} == {
        ("clean", "short", "A gay man."),
        ("clean", "short", "Gay men"),
    }


def test_intersections_are_counted_in_their_own_suite_and_can_be_switched_off():
    texts = ["Black women are terrible. Muslim men live here. White women are good. Jewish women are bad."] * 40
    tables = bias_tables(counted(rows_of(texts)))
    rows = tables["intersections"]
    assert {("ethnicity x gender", "black x female"), ("religion x gender", "muslim x male")} <= {
        (row["axis"], row["group"]) for row in rows
    }
    assert not any(CROSS in str(row["axis"]) for suite, of in tables.items() if suite != "intersections" for row in of)
    off = load_lexicons(WordListsConfig(intersections=()))
    assert not any(lexicon.crossed for lexicon in off.languages.values())
    assert off.sha256 != LEXICONS.sha256
    assert chosen_pairs(None, {"gender", "religion"}) == ("religion x gender",)
    for wrong in ("gender", "gender x gender", "gender x shoe"):
        with pytest.raises(ConfigError, match="not a pair of axes"):
            load_lexicons(WordListsConfig(intersections=(wrong,)))


@pytest.mark.parametrize(
    ("found", "size", "words"),
    [
        (ratio_effect(0.5), "large", "half as often"),
        (ratio_effect(1.1), "small", "1.1 times as often"),
        (ratio_effect(0.0), "large", "never"),
        (ratio_effect(0.7, "kept"), "medium", "kept 0.7 times as often"),
        (gap_effect(-0.19), "small", "lower by 0.19 listed words per sentence"),
        (gap_effect(0.5), "large", "higher by 0.5 listed words per sentence"),
        (gap_effect(0.99, a_word=1.1), "large", "higher by 0.99 listed words per sentence"),
        (gap_effect(-0.998), "large", "lower by 1 listed word per sentence"),
        (gap_effect(1.0, "vader"), "large", "higher by 1 point of vader per sentence"),
    ],
)
def test_effects_in_words(found, size, words):
    assert {name: found[name] for name in ("size", "words")} == {"size": size, "words": words}

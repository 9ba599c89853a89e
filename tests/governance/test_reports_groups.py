"""Differences between groups on the page: dot plots, words, and the folded tables."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.bias.interval_rows import COLUMNS
from governance.reports.facts.problems import first_look
from governance.reports.html.markup import join
from governance.reports.sections.bias_sections import significant_rows
from governance.reports.sections.group_sections import PANEL_ROWS, groups, groups_folded, panels, scale_of
from governance.reports.sections.group_words import headline, phrase
from governance.reports.sections.page_one import reasons
from tests.governance.test_reports_page import Page

FOUND = {
    "verdict": {}, "summary": {"verdict": "PASS", "documents_in": 9, "documents_kept": 9}, "checks": [], "sources": [],
    "faults": {"ended": [], "skipped": [], "attempts": [], "diverged": [], "stragglers": []}, "representation": None,
    "energy": {"total": {"joules": 1.0, "wasted": 0.0}, "wasted_by_cause": {}, "estimated": False, "missing": []},
}  # fmt: skip


def row(metric="sentiment_gap", lower=-0.4, value=-0.3, upper=-0.1, **more):
    fields = dict.fromkeys(COLUMNS) | {"metric": metric, "language": "en", "axis": "gender", "group": "female"}
    return {**fields, "lower": lower, "value": value, "upper": upper, "n": 100, "p": 0.001, "q": 0.002, **more}


def found(**suites):
    return {**FOUND, "bias": suites}


intervals = st.tuples(*[st.floats(1e-3, 1e3)] * 3).map(sorted)


@given(st.lists(intervals, min_size=1, max_size=60), st.sampled_from(["keep_ratio_adjusted", "npmi_gap"]))
def test_every_dot_is_on_the_scale_and_dots_are_in_the_order_of_their_values(values, metric):
    rows = [row(metric, *ends, group=f"g{place}") for place, ends in enumerate(values)]
    drawn = str(panels(rows))
    low, high = scale_of(rows)
    assert low < high
    places = [float(place) for place in re.findall(r'd="M([\d.]+) 5h', drawn)]
    assert len(places) == min(len(rows), PANEL_ROWS)
    assert places == sorted(places)
    assert all(0 <= place <= 1000 for place in places)
    if metric == "npmi_gap":
        inside = [row["value"] for row in rows]
        assert low <= min(inside) <= max(inside) <= high
    else:
        assert -math.log(8) <= low <= 0 <= high <= math.log(8)
    hidden = len(rows) - len(places)
    assert f"{hidden} more in the table" in drawn or not hidden


def test_a_panel_an_axis_with_one_scale_and_what_is_a_finding_is_marked():
    rows = [
        row(group="far"),
        row(group="near", lower=-0.1, value=0.0, upper=0.1, q=0.9),
        row(group="other", axis="age", lower=0.1, value=0.2, upper=0.3),
        row(group="unknown", lower=None, upper=None),
    ]
    drawn = str(panels(rows))
    page = Page(drawn)
    assert drawn.count("<figure") == 2
    labels = [attributes["aria-label"] for attributes in page.named("svg")]
    assert labels == [
        "other: 0.2, 95 % interval 0.1 to 0.3, n = 100",
        "far: -0.3, 95 % interval -0.4 to -0.1, n = 100",
        "near: 0.0, 95 % interval -0.1 to 0.1, n = 100",
    ]
    assert drawn.count('class="hit"') == 2
    assert len(set(re.findall(r'class="ends">(.*?)</div>', drawn))) == 1
    assert panels([rows[3]]) is None


def test_the_axis_of_a_ratio_says_ratios():
    drawn = str(panels([row("keep_ratio_adjusted", 0.05, 0.5, 40.0, group="a")]))
    assert re.findall(r"<span[^>]*>([\d.]+)</span>", drawn.partition('class="ends"')[2]) == ["0.125", "1", "8"]


@pytest.mark.parametrize(
    ("given_row", "sentence"),
    [
        (
            row("keep_ratio_adjusted", 0.5, 0.6, 0.7),
            "Documents that mention “female” are removed more often than those that mention no such group",
        ),
        (
            row("keep_ratio_adjusted", 0.5, 0.6, 0.7, against="male"),
            "Documents that mention “female” are removed more often than those that mention “male”",
        ),
        (
            row("npmi_gap", 0.1, 0.2, 0.3, group="he", axis="pronouns", against="occupation/soldier"),
            "“he” occurs more often with “occupation: soldier” than other pronouns",
        ),
        (
            row(axis="home_towns", group="rome"),
            "Sentences that mention “rome” are less favourable than those of other groups of “home towns”",
        ),
        (
            row(axis="ethnicity x gender", group="black x female"),
            "Sentences that mention “black x female” are less favourable than those of other groups of “ethnicity” and "
            "“gender”",
        ),
        (row(), "Sentences that mention “female” are less favourable than those of other gender groups"),
        (
            row(axis="gender (names)"),
            "Sentences that mention “female (names)” are less favourable than those of other gender groups (names)",
        ),
        (
            row("toxicity_ratio", 2, 3, 4),
            "Sentences that mention “female” contain insults more often than those of other gender groups",
        ),
        (
            row("npmi_gap", 0.1, 0.2, 0.3, group="middle_aged", axis="age", against="career/career"),
            "“middle aged” occurs more often with “career” than other age groups",
        ),
        (row("premium", 1.1, 1.2, 1.3, language="nl"), "nl needs more tokens for the same text"),
    ],
)
def test_a_headline_is_a_sentence(given_row, sentence):
    assert headline(given_row) == sentence
    assert phrase(given_row)


def test_the_same_ratio_of_the_only_filter_is_reported_once():
    same = [row("keep_ratio_adjusted", 0.5, 0.6, 0.7, stage=stage) for stage in ("clean", "(all)", "dedup")]
    other = row("keep_ratio_adjusted", 0.5, 0.65, 0.7, stage="dedup")
    assert [one["stage"] for one in significant_rows({"impact": [*same, other]})["impact"]] == ["(all)", "dedup"]


def test_a_group_of_one_language_is_reported_once():
    """The row of all languages repeats the only language that mentions the group; two languages are two findings."""
    names = {"axis": "religion", "group": "atheist", "stage": "(all)"}
    english, both = (row("keep_ratio_adjusted", 0.32, 0.5, 0.73, **names, language=one) for one in ("en", "(all)"))
    german = {**english, "language": "de"}
    for rows, languages in (
        ([both, english], ["en"]),
        ([english, german], ["de", "en"]),
        ([{**both, "lower": 0.31}, english], ["(all)", "en"]),
        ([{**both, "n": 101}, english], ["(all)", "en"]),
    ):
        assert sorted(one["language"] for one in significant_rows({"impact": rows})["impact"]) == languages
    assert "1 significant difference," in str(groups(found(impact=[both, english])))


def test_a_difference_on_the_most_text_comes_first():
    """Ten sentences stand behind ten thousand, however large their difference; what is imprecise is marked."""
    few = row(lower=0.67, value=1.03, upper=1.1, group="few", n=10)
    many = row(lower=0.13, value=0.17, upper=0.2, group="many", n=14_018)
    assert [one["group"] for one in significant_rows({"tone": [few, many]})["tone"]] == ["many", "few"]
    known = [{"suite": "tone", **one, "precise": one is many, "effect": {}, "examples": []} for one in (few, many)]
    shown = {**found(tone=[few, many]), "findings": known}
    page = str(groups(shown))
    assert page.index(">many<") < page.index(">few<")
    assert page.count("; imprecise<") == 1
    assert "“many”" in first_look(shown)[0]["what"]
    table = str(join(groups_folded(shown))).rpartition("<table")[2]
    assert table.index("many") < table.index("few")


def test_no_headline_without_a_test_behind_it():
    untested = row(p=None, q=None, group="never tested")
    chance = row(q=0.2, group="by chance")
    assert first_look(found(tone=[untested, chance])) == []
    [output] = first_look(found(tone=[untested, chance, row(), row(group="male")]))
    assert output["what"] == "Sentences that mention “female” are less favourable than those of other gender groups"
    assert output["n"] == "100 sentences, q 0.002"
    filtered = row("keep_ratio_adjusted", 0.5, 0.6, 0.7, stage="(all)")
    assert first_look(found(impact=[filtered]))[0]["n"] == "100 documents, q 0.002"
    assert "95 % interval -0.4 to -0.1; 1 more difference of this kind" in output["detail"]
    imprecise = {"suite": "tone", **row(), "precise": False, "effect": {}, "examples": []}
    assert first_look({**found(tone=[row()]), "findings": [imprecise]}) == []
    assert "never tested" not in str(groups(found(tone=[untested, chance])))


def test_a_finding_with_terms_and_examples_shows_them():
    finding = {
        **row(), "id": "x", "suite": "tone",
        "effect": {"size": "small", "words": "lower by 0.3 listed words per sentence"},
        "terms": {"group": [], "words": [{"term": "victim", "count": 3, "contribution": -0.1}]},
        "examples": [{"id": f"d{n}", "text": f"She was <b>called</b> a victim{n}."} for n in range(3)],
    }  # fmt: skip
    given = {**found(tone=[row()]), "findings": [finding]}
    page = str(groups(given))
    shown, _, folded = page.partition("</summary>")
    for words in (
        "small: lower by 0.3 listed words per sentence",
        "victim",
        "She was &lt;b&gt;called&lt;/b&gt; a victim0.",
    ):
        assert words in shown
    assert all(f"a victim{n}." in folded.partition("</details>")[0] for n in (1, 2))
    better = {**finding, "id": "y", "group": "male"}  # of a row that is not significant
    assert ">male<" not in str(groups({**given, "findings": [better, finding]}))
    [output] = first_look(given)
    assert output["example"] == "She was <b>called</b> a victim0."
    assert "lower by 0.3 listed words per sentence" in output["detail"]


def test_every_row_is_in_a_fold_and_only_some_are_open():
    rows = [row(group=f"group{n}", language=language) for n in range(200) for language in ("de", "en")]
    opened = str(groups(found(tone=rows))).partition("<details>")[0]
    assert opened.count("<tr>") <= 8
    folded = join(groups_folded(found(tone=rows)))
    assert folded.startswith("<details>")
    whole = folded.rpartition("<table")[2]
    assert all(f">group{n}<" in whole for n in range(200))
    assert "400 of 400 tested differ" in folded


def test_two_references_are_two_drawings():
    rows = [row(against=against, group=group) for group in ("female", "male") for against in ("nobody", "other groups")]
    folded = join(groups_folded(found(tone=rows)))
    titles = re.findall(r"<h4>(.*?)</h4>", folded)
    assert [re.sub("<.*?>", "", title) for title in titles] == [
        "Sentiment gap, en, against nobody",
        "Sentiment gap, en, against other groups",
    ]
    assert folded.count("<figure") == 2


def test_what_no_word_list_covers_is_reported_in_words():
    note = "3.0 % of documents are in languages that no word list covers: fi 2.0 %, et 1.0 %"
    gap = row("coverage", 0.97, 0.97, 1.0, instrument=None, n=1000, p=None, q=None, note=note)
    covered = row("coverage", 1.0, 1.0, 1.0, instrument=None, n=1000, p=None, q=None, note="")
    scores = row("coverage", 0.5, 0.5, 1.0, instrument="sentiment", n=1000, p=None, q=None, note="50 % of documents")
    assert first_look(found(representation=[{**scores, "note": ""}, covered])) == []
    [output] = first_look(found(representation=[gap]))
    assert output["what"] == "3.0 % of documents are in languages that no word list covers"
    assert (output["n"], output["example"]) == ("1,000 documents", "fi 2.0 %, et 1.0 %")
    assert note in str(groups(found(representation=[gap])))


def test_what_no_list_of_tone_or_themes_covers_is_on_page_one_in_words():
    """In Japanese only identity terms are listed: whom documents mention is counted, and not how they speak of them."""
    whom = row("coverage", 1.0, 1.0, 1.0, instrument=None, n=1000, p=None, q=None, note=None)
    rows = [whom]
    for name, value in (("sentiment", 0.6), ("toxicity", 0.6), ("attributes", 0.6), ("sentiment:own", 0.1)):
        note = f"{100 * (1 - value):.0f} % of documents are in languages that no {name} list covers: ja, zh"
        rows.append(row("coverage", value, value, 1.0, instrument=name, n=1000, p=None, q=None, note=note))
    given = found(representation=rows)
    words = "40 % of documents are in languages without a list for sentiment, toxicity and attributes"
    [output] = first_look(given)  # one gap of all lists; a run's own list need not cover everything
    assert (output["what"], output["example"]) == (words, "ja, zh")
    assert output["detail"] == "their tone, insults and associations were not measured"
    assert f"{words}: ja, zh" in " ".join(reasons({**given, "verdict": {"summary": {"pass": 9}}}))
    assert words in str(groups(given))
    rows[3]["note"] = None
    assert "a list for sentiment and toxicity" in first_look(given)[0]["what"]
    whom["note"] = "40 % of documents are in languages that no word list covers: ja, zh"
    assert [one["detail"] for one in first_look(given)] == ["the groups they mention were not measured"]

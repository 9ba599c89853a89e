"""The word lists have their counterparts: a law of the format, and a property of ours in every language."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.bias.word_lists import list_files
from governance.checks.bias.word_lists.list_files import PAIRS, headings_of, read_lists
from governance.errors import ConfigError

FOLDER = Path(list_files.__file__).parent / "terms"
FILES = {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.toml"))}
GENDERED = ("ar", "de", "es", "fr", "it", "pl", "pt", "ru")
"""Languages in which a nation, a faith or an age has a form for women and one for men."""


def tables(code):
    """The axes of one language as they are written."""
    return FILES[code][code]


def counted(code):
    """Concept -> group -> its terms, of the pairs of gender."""
    named = FILES[code].get("lists", {}).get(code, {})
    rows = {name: row for name, row in tables(code)["gender"][PAIRS].items() if set(row) != {"none"}}
    return {
        concept: {group: headings_of({"a": {"g": cell.split(",")}}, named)["a"]["g"] for group, cell in row.items()}
        for concept, row in rows.items()
    }


@pytest.mark.parametrize("code", FILES)
def test_each_concept_of_gender_has_a_term_for_women_and_one_for_men(code):
    rows = counted(code)
    assert len(rows) >= 9
    assert all(set(row) == {"female", "male"} and all(row.values()) for row in rows.values())
    assert not {"female", "male"} & set(tables(code)["gender"]), "terms outside the pairs"


@pytest.mark.parametrize("code", FILES)
def test_neither_gender_has_many_more_forms_than_the_other(code):
    forms = [sum(len(row[group]) for row in counted(code).values()) for group in ("female", "male")]
    assert 0.6 <= forms[0] / forms[1] <= 1.7, forms


@pytest.mark.parametrize("code", GENDERED)
@pytest.mark.parametrize("axis", ["religion", "nationality", "ethnicity", "age"])
def test_each_group_is_counted_in_women_and_in_men_or_in_neither(code, axis):
    rows = {name: row for name, row in tables(code)[axis].items() if isinstance(row, dict)}
    alone = {name for name, row in tables(code)[axis].items() if not isinstance(row, dict)}
    assert alone <= {"child", "none"}
    for name, row in rows.items():
        assert {"man", "woman"} <= set(row), name
        assert row["man"].startswith("none:") == row["woman"].startswith("none:"), name


ONE_FORM = {"es": {"mechanic", "musician", "politician"}, "it": {"mechanic"},
            "pt": {"mechanic", "musician", "nanny", "politician"}}  # fmt: skip
"""Occupations whose other form is another word; the file says which."""


@pytest.mark.parametrize("code", ["de", "es", "fr", "it", "pt"])
def test_each_occupation_is_counted_in_women_and_in_men(code):
    values = tomllib.loads((FOLDER.parent / "attributes.toml").read_text(encoding="utf-8"))
    rows = values[code]["occupation"]
    assert {name for name, row in rows.items() if not isinstance(row, dict)} == ONE_FORM.get(code, set())
    for name, row in rows.items():
        if name not in ONE_FORM.get(code, set()):
            read = {form: headings_of({"a": {"g": cell.split(",")}}, values["lists"][code])["a"]["g"]
                    for form, cell in row.items()}  # fmt: skip
            assert set(read) == {"man", "woman"}
            assert 0.3 <= len(read["man"]) / len(read["woman"]) <= 3, (name, read)


@pytest.mark.parametrize("code", FILES)
def test_a_term_of_two_groups_is_in_a_pair_as_the_term_of_both(code):
    """ "Men and women" in one word is a mention of each; no other term belongs to two groups of an axis."""
    both = {term for row in counted(code).values() for term in set(row["female"]) & set(row["male"])}
    for axis, lists in read_lists("terms").languages[code].items():
        groups = {}
        for group, terms in lists.items():
            for term in terms:
                groups.setdefault(term, set()).add(group)
        shared = {term for term, of in groups.items() if len(of) > 1}
        assert shared == (both if axis == "gender" else set()), axis


@pytest.mark.parametrize(
    ("colours", "code"),
    [(("black", "white"), code) for code in ("en", "de", "es", "fr", "pt", "nl")] + [(("old", "young"), "nl")],
)
def test_the_groups_of_a_phrase_are_before_the_same_nouns(colours, code):
    axis = "age" if "old" in colours else "ethnicity"
    lists = read_lists("terms").languages[code][axis]
    nouns = [
        {term[-1] if code in ("en", "de", "nl") else term[0] for term in lists[group] if len(term) == 2}
        for group in colours
    ]
    assert len(nouns[0] & nouns[1]) >= 0.7 * min(map(len, nouns))


ASYMMETRIC = {
    "half a pair": (
        {"gender": {PAIRS: {"a": {"f": "she", "m": "he"}, "b": {"f": "aunt"}}}},
        "m has no term",
    ),
    "an empty half": ({"gender": {PAIRS: {"a": {"f": "she", "m": " "}}}}, "m has no term"),
    "terms beside the pairs": ({"gender": {PAIRS: {"a": {"f": "she", "m": "he"}}, "f": ["her"]}}, "outside"),
    "no reason": ({"gender": {PAIRS: {"a": {"f": "she", "m": "he"}, "b": {"none": "no"}}}}, "no reason"),
    "a form that others have": ({"faith": {"x": {"man": "a", "woman": "b"}, "y": {"man": "c"}}}, "lacks woman"),
    "a man without a woman": ({"faith": {"x": {"man": "a", "woman": "none: a reason"}}}, "only one of man"),
    "a form without a reason": ({"faith": {"x": {"man": "a", "woman": "b", "word": "none:"}}}, "no reason"),
    "an empty form": ({"faith": {"x": {"man": "a", "woman": "b", "word": ""}}}, "empty cell"),
    "nothing counted": ({"faith": {"x": {"word": "none: a reason"}}}, "empty cell"),
}


@pytest.mark.parametrize("name", ASYMMETRIC)
def test_what_lacks_its_counterpart_is_refused(name):
    values, words = ASYMMETRIC[name]
    with pytest.raises(ValueError, match=words):
        headings_of(values, {})


def test_a_file_that_breaks_the_law_is_named(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('version = 1\n[xx.gender.pairs]\naunt = { female = "aunt" }\nman = { female = "w", male = "m" }\n')
    with pytest.raises(ConfigError, match=r"own\.toml.*gender\.pairs\.aunt: male has no term"):
        read_lists("terms", path)


WORD = st.sampled_from(["a", "b", "c", "d", "e"])


@given(st.dictionaries(WORD, st.fixed_dictionaries({"f": WORD, "m": WORD}), min_size=1), st.data())
def test_any_pair_that_loses_a_half_is_refused(rows, data):
    read = headings_of({"axis": {PAIRS: rows}}, {})["axis"]
    assert {group: set(terms) for group, terms in read.items()} == {
        group: {(row[group],) for row in rows.values()} for group in ("f", "m")
    }
    concept, group = data.draw(st.sampled_from(sorted(rows))), data.draw(st.sampled_from("fm"))
    if len(rows) > 1:
        del rows[concept][group]
    else:
        rows[concept][group] = ""
    with pytest.raises(ValueError, match="has no term"):
        headings_of({"axis": {PAIRS: rows}}, {})


def test_braces_are_for_each():
    read = headings_of({"a": {"g": ["{x|y} {who}", "plain"]}}, {"who": ["man", "old {sex}"], "sex": ["woman", "lady"]})
    assert read["a"]["g"] == [
        ("x", "man"), ("x", "old", "woman"), ("x", "old", "lady"), ("y", "man"), ("y", "old", "woman"),
        ("y", "old", "lady"), ("plain",),
    ]  # fmt: skip

"""The word lists have their counterparts: a law of the format, and a property of ours in every language."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.checks.bias.word_lists import list_files
from governance.checks.bias.word_lists.list_files import PAIRS, headings_of, read_lists
from governance.errors import ConfigError
from governance.kernels.word_lookup import joined

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


SCORED = {
    name: tomllib.loads((FOLDER.parent / f"{name}.toml").read_text(encoding="utf-8"))
    for name in ("sentiment", "toxicity")
}
FEMININE = {
    "de": (("er", "e"),),
    "es": (("o", "a"), ("os", "as"), ("dor", "dora"), ("dores", "doras"), ("tor", "tora")),
    "fr": (
        ("eux", "euse"), ("if", "ive"), ("é", "ée"), ("és", "ées"), ("ant", "ante"), ("ants", "antes"), ("ent", "ente"),
        ("ents", "entes"), ("el", "elle"), ("il", "ille"), ("ils", "illes"), ("eurs", "eures"), ("du", "due"),
        ("mpu", "mpue"), ("in", "ine"), ("ins", "ines"), ("ard", "arde"), ("ards", "ardes"), ("ois", "oise"),
        ("uts", "utes"), ("iot", "iote"), ("iots", "iotes"), ("âtard", "âtarde"),
    ),
    "it": (("o", "a"), ("i", "e")),
    "pt": (("o", "a"), ("os", "as"), ("dor", "dora"), ("dores", "doras")),
}  # fmt: skip
"""Endings of men's and of women's form."""
ONE_GENDER = {
    "de": "tapfer, lügner, arschlöcher, penner, ungeziefer, wichser",
    "es": "éxito, fracaso, miedo, odio, coño, capullo, cerdo asqueroso",
    "fr": "putain",
    "it": "sorriso, successo, disastro, fallimento, odio, cazzo, vaffanculo",
    "pt": "sorriso, sucesso, fracasso, medo, ódio, cabrão, caralho, lixo humano",
}
"""Nouns and words with one form; "lügnerin" and the like are listed by themselves."""


@pytest.mark.parametrize("code", FEMININE)
@pytest.mark.parametrize("name", SCORED)
def test_each_scored_adjective_is_counted_of_women_as_of_men(name, code):
    """A list with "admirado" and without "admirada" finds praise of men alone: the gap is its own."""
    alone = set(ONE_GENDER[code].split(", "))
    for listed in SCORED[name][code][name].values():
        terms = set(listed)
        for term in terms - alone:
            counterparts = {term.removesuffix(men) + women for men, women in FEMININE[code] if term.endswith(men)}
            assert not counterparts or counterparts & terms, (term, counterparts)


COUNTERPART_OF_ONE_WORD = {
    ("es", "nationality", "argentine"), ("es", "nationality", "chinese"), ("es", "ethnicity", "latino"),
    ("pt", "nationality", "argentine"), ("pt", "ethnicity", "latino"), ("pl", "age", "young"),
}  # fmt: skip
"""Groups whose women are a phrase ("mujer argentina": the word alone is the country) and whose men are a word."""


@pytest.mark.parametrize("code", FILES)
def test_phrases_of_women_and_of_men_are_alike_in_every_list(code):
    """ "Old woman" and "old man", "englishwoman" and "englishman", whatever the axis and the form of its list."""
    women, men = ({term for row in counted(code).values() for term in row[group]} for group in ("female", "male"))
    women, men = women - men, men - women
    for axis, lists in read_lists("terms").languages[code].items():
        for group, terms in lists.items():
            if axis not in ("gender", "pronouns") and (code, axis, group) not in COUNTERPART_OF_ONE_WORD:
                phrases = [term for term in terms if len(term) > 1]
                held = [sum(any((word,) in of for word in term) for term in phrases) for of in (women, men)]
                assert held == [0, 0] or 0.5 <= held[0] / max(held[1], 0.1) <= 2, (axis, group, held)


FORMS = {
    ("en", "religion"): {"people": "s$", "faith": "(ism|ity|islam)$"},
    ("en", "nationality"): {"people": "(s|men|people)$"},
    ("en", "ethnicity"): {"people": "(s|people)$"},
    ("en", "orientation"): {"people": "(s|people)$"},
    ("hi", "religion"): {"people": "[ोओ]ं$"},
    ("hi", "nationality"): {"people": "ों$"},
    ("hi", "caste"): {"people": "[ोओ]ं$"},
    ("hi", "age"): {"people": "ों$"},
    ("ja", "religion"): {"faith": "(教|論|道)$", "people": "(徒|者|人)$"},
    ("ja", "nationality"): {"people": "人$"},
    ("ja", "ethnicity"): {"people": "(人|系|族)$"},
    ("ko", "religion"): {"faith": "(교|론)", "people": "(도|자|인)$"},
    ("ko", "nationality"): {"person": "인$", "people": "사람$"},
    ("ko", "ethnicity"): {"people": "(인|계|시)$"},
    ("tr", "religion"): {"faith": "(izm|l[iı]k|liği|islam)", "people": "l[ae]r$"},
    ("tr", "nationality"): {"people": "l[ae]r$"},
    ("tr", "ethnicity"): {"people": "l[ae]r$"},
    ("zh", "religion"): {"faith": "(教|论|論)$", "people": "(徒|者|人|林)$"},
    ("zh", "nationality"): {"people": "人$"},
    ("zh", "ethnicity"): {"people": "(人|族|裔)$"},
}
"""Forms that each group of a plain list has, by the end of a term."""
NO_SUCH_FORM = {
    ("en", "nationality"): "chinese japanese congolese portuguese vietnamese",  # one form for one and for many
    ("en", "ethnicity"): "mixed",
    ("en", "orientation"): "queer",
    ("ja", "religion"): "shinto",  # it names no people
}
SAME_GROUPS = {
    "disability": {"autistic", "blind", "deaf", "disabled", "mental_illness", "wheelchair"},
    "orientation": {"bisexual", "gay", "heterosexual", "lesbian", "queer"},
    "age": {"child", "old", "young"},
}
"""Groups that each language lists, so that none is measured against a rest that others do not have."""


@pytest.mark.parametrize(("code", "axis"), FORMS)
def test_each_group_of_a_plain_list_has_the_forms_of_the_others(code, axis):
    """With "french" as a person and as an adjective, and "turkish" as the latter alone, unlike things are compared."""
    for group, terms in read_lists("terms").languages[code][axis].items():
        if group != "none" and group not in NO_SUCH_FORM.get((code, axis), "").split():
            words = [joined(term) for term in terms]
            assert all(any(re.search(end, word) for word in words) for end in FORMS[code, axis].values()), (
                group,
                words,
            )


@pytest.mark.parametrize("code", FILES)
def test_no_list_escapes_the_laws(code):
    """Written in pairs or in forms, of which the reader is the judge, or a plain list with a law above."""
    for axis, lists in tables(code).items():
        if axis in SAME_GROUPS:
            assert SAME_GROUPS[axis] <= set(lists), axis
            continue
        plain = {name for name, row in lists.items() if not isinstance(row, dict)} - {"none", "child"}
        plain -= {"gender": {"nonbinary", "transgender"}, "pronouns": {"neo", "they"}}.get(
            axis, set()
        )  # beside the pairs
        assert not plain or (code, axis) in FORMS or (code, axis) in LAWLESS, (axis, sorted(plain))


LAWLESS = {("hi", "ethnicity")}
"""Five groups, each named in its own way: a tribe, a region, a colour before "people"."""


ASYMMETRIC = {
    "half a pair": ({"gender": {PAIRS: {"a": {"f": "she", "m": "he"}, "b": {"f": "aunt"}}}}, "m has no term"),
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

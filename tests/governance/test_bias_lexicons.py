"""The word lists: ours are well formed and kept apart, external ones are read by path, wrong files are reported."""

from __future__ import annotations

import json
import tomllib
import unicodedata
from pathlib import Path

import pytest

from governance.checks.bias.word_lists import lexicons as x
from governance.errors import ConfigError
from governance.kernels.word_lookup import split_words
from tests.given_data import given_data

SCORED = {"de", "en", "es", "fr", "it", "nl", "pt"}
LANGUAGES = SCORED | {"ar", "hi", "ja", "ko", "pl", "ru", "tr", "zh"}
AXES = {"gender", "religion", "nationality", "ethnicity", "age", "disability", "orientation"}
FURTHER_AXES = {"en": {"pronouns"}, "es": {"pronouns"}, "pt": {"pronouns"}, "hi": {"caste"}}
INSTRUMENTS = ("attributes", "sentiment", "toxicity")


def every_term(name):
    """(language, heading, name, term) of one of our files."""
    for code, headings in x.read_lists(name).languages.items():
        for heading, lists in headings.items():
            for own, terms in lists.items():
                for term in terms:
                    yield code, heading, own, term


def test_every_language_has_every_list():
    assert set(x.read_lists("terms").languages) == LANGUAGES
    for name in INSTRUMENTS:
        assert set(x.read_lists(name).languages) == SCORED
    for code, headings in x.read_lists("terms").languages.items():
        assert set(headings) == AXES | FURTHER_AXES.get(code, set()), code
    for headings in x.read_lists("attributes").languages.values():
        assert {
            "occupation",
            "competence",
            "warmth",
            "career",
            "family",
            "science",
            "violence",
            "crime",
            "sport",
        } <= set(headings)
        assert len(headings["occupation"]) >= 30
        assert set(headings["competence"]) == set(headings["warmth"]) == {"high", "low"}


@pytest.mark.parametrize("name", x.OURS)
def test_our_lists_are_well_formed(name):
    for _, headings in x.read_lists(name).languages.items():
        for lists in headings.values():
            for terms in lists.values():
                assert terms, "an empty group would be measured as absent"
                assert len(set(terms)) == len(terms)
                assert all(split_words(" ".join(term)) == list(term) for term in terms)


@pytest.mark.parametrize("name", ["sentiment", "toxicity", "dialects"])
def test_our_plain_lists_are_written_as_they_are_compared(name):
    values = tomllib.loads((Path(x.__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    assert isinstance(values.pop("version"), int)
    for headings in values.values():
        for term in (term for lists in headings.values() for terms in lists.values() for term in terms):
            assert term == term.lower() == unicodedata.normalize("NFC", term)


def test_a_language_without_words_of_an_instrument_has_no_score_in_it():
    lexicons = x.load_lexicons(x.WordListsConfig())
    assert {name: set(codes) for name, codes in lexicons.scored.items()} == dict.fromkeys(
        ("sentiment", "toxicity"), SCORED
    )


@pytest.mark.parametrize("name", [*INSTRUMENTS, "dialects"])
def test_no_identity_term_is_in_an_instrument(name):
    identity = {(code, term) for code, _, _, term in every_term("terms")}
    assert [(code, term) for code, _, _, term in every_term(name) if (code, term) in identity] == []


def test_a_tone_has_one_sign():
    signs = {}
    for code, _, name, term in every_term("sentiment"):
        assert signs.setdefault((code, term), name) == name


def test_dialects_do_not_share_a_word():
    seen = {}
    for code, _, name, term in every_term("dialects"):
        assert seen.setdefault((code, term), name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version = 1\n[en]\ngender = 3",
        "version = 1\n[en.gender]\nfemale = ['--']",
        "version = 1\n[en.gender]\nfemale = ['{nobody} x']",
        "version = ",
        "\xff",
    ],
)
def test_a_file_that_is_no_list_is_reported(tmp_path, text):
    (tmp_path / "terms.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"terms\.toml: is not a word list"):
        x.load_lexicons(x.WordListsConfig(lists={"terms": "terms.toml"}), tmp_path)


def outside(tmp_path):
    descriptors = {"ability": {"visual": [{"descriptor": "four-eyed"}, "low-vision"]}, "nonce": {"all": ["blicket"]}}
    descriptors["faith"] = {"all": ["Old Believer"]}
    (tmp_path / "d.json").write_text(json.dumps(descriptors))
    (tmp_path / "n.json").write_text(json.dumps({"female": [["lady", "ladies"]], "neutral": [["person", "people"]]}))
    (tmp_path / "bad.txt").write_text("zounds\n2 swear words\nlesbian\n🖕\n")
    (tmp_path / "f.txt").write_text("nurse\nsecretary\n")
    (tmp_path / "m.txt").write_text("driver\nfireman\nboss")
    (tmp_path / "o.tsv").write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\ntechnician\t9\t40.3\nteacher\t70\t73"
    )
    return x.WordListsConfig(
        holistic_descriptors="d.json", holistic_nouns="n.json", bad_words={"en": "bad.txt"}, winobias_female="f.txt",
        winobias_male="m.txt", winogender="o.tsv",
    )  # fmt: skip


def test_lists_of_others_by_path(tmp_path, caplog):
    ours, loaded = x.load_lexicons(x.WordListsConfig()), x.load_lexicons(outside(tmp_path), tmp_path)
    assert ours.instruments == ("sentiment", "toxicity")
    assert loaded.instruments == ("bad_words", "sentiment", "toxicity")
    assert ours.sha256 != loaded.sha256
    english = loaded.languages["en"]
    assert set(english.groups) - set(ours.languages["en"].groups) == {
        ("holistic.ability", "visual"), ("holistic.faith", "old believer")
    }  # fmt: skip
    [visual] = english.identity[("four", "eyed", "ladies")]
    assert english.groups[visual] == ("holistic.ability", "visual")
    assert ("old", "believer", "person") in english.identity
    assert not any("blicket" in term for term in english.identity)
    of = {name: english.categories.index(("winobias", name)) for name in ("female", "male")}
    assert (0, of["female"], 0) in english.others[("secretaries",)]
    assert all((0, of["male"], 0) in english.others[(word,)] for word in ("drivers", "firemen", "bosses"))
    assert (0, english.categories.index(("winogender", "male")), 0) in english.others[("technicians",)]
    assert english.others[("zounds",)] == ((1, 0, 1),)
    assert ("2", "swear", "words") in english.others
    assert ("lesbian",) not in english.others, "an identity term is no instrument's"
    assert loaded.left_out == 1
    assert "1 terms of instruments or attributes are identity terms" in caplog.text


def test_the_lists_of_others_as_they_are_given_out():
    config = x.WordListsConfig(
        holistic_descriptors="holisticbias_descriptors.json",
        holistic_nouns="holisticbias_nouns.json",
        bad_words={code: f"ldnoobw/{code}.txt" for code in sorted(SCORED)},
        winobias_female="winobias_female_occupations.txt",
        winobias_male="winobias_male_occupations.txt",
        winogender="winogender_occupations_stats.tsv",
    )
    english = x.load_lexicons(config, given_data("lexicons")).languages["en"]
    assert {axis for axis in english.axes if axis.startswith("holistic.")} > {"holistic.ability", "holistic.religion"}
    assert ("holistic.religion", "amish") in english.groups
    assert {name for family, name in english.categories if family in {"winobias", "winogender"}} == {"female", "male"}
    assert len(english.identity) > 30_000


@pytest.mark.parametrize(
    ("field", "value", "text", "output"),
    [
        ("holistic_nouns", "", "", "holistic_descriptors is set without its counterpart"),
        ("holistic_descriptors", "gone.json", "", "holistic_descriptors: .*gone.json is not such a file"),
        ("holistic_descriptors", "w", "[]", "is not such a file"),
        ("holistic_descriptors", "w", "{}", "hold no descriptor"),
        ("holistic_nouns", "w", '{"female": [3]}', "holistic_nouns: .*w is not such a file"),
        ("bad_words", {"en": "w"}, "{", "bad_words: .*w is not such a file"),
        (
            "bad_words",
            {"en": "w"},
            "one line of far too many words for any phrase that anybody would ever list",
            "bad_words",
        ),
        ("bad_words", {"xx": "w"}, "foo", "'xx', which has no identity terms"),
        ("winobias_male", "w", "--", "winobias_male"),
        ("winogender", "w", "job\tshare\nnurse\t90", "winogender: .*w is not such a file"),
        ("winogender", "w", "occupation\tbls_pct_female\nnurse\tninety", "winogender"),
    ],
)
def test_a_wrong_file_is_reported_with_its_field(tmp_path, field, value, text, output):
    (tmp_path / "w").write_text(text)
    config = outside(tmp_path).model_copy(update={field: value})
    with pytest.raises(ConfigError, match=output):
        x.load_lexicons(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sentiment", 'version = 1\n[en.sentiment]\ngood = ["nice"]\n'),
        ("sentiment", 'version = 1\n[en.praise]\npositive = ["nice"]\n'),
        ("dialects", 'version = 1\n[en.spelling]\ngb = ["colour"]\n'),
    ],
)
def test_a_list_under_another_heading_is_reported_and_not_counted_as_nothing(tmp_path, name, text):
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(ConfigError, match=rf"list {name} has"):
        x.load_lexicons(x.WordListsConfig(lists={name: "list.toml"}), tmp_path)

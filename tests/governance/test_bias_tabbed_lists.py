"""External scored words and given names, by path: their effect, and errors with file and line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.checks.bias import counts as c
from governance.checks.bias.bias import BiasConfig, _list_scorers, _terms, bias_audit
from governance.checks.bias.findings import _behind, contributions, findings_of, weights_of
from governance.checks.bias.instrument_check import biased_instruments, instrument_rows, load_templates
from governance.checks.bias.tables import Choices, bias_tables
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.checks.bias.word_lists.tabbed_lists import PROXIES
from governance.config import Section, load_config
from governance.errors import ConfigError
from governance.stage import Runtime
from tests.governance import test_bias_counts as plain
from tests.governance.test_bias_stage import corpus

VADER = (
    "\ufeff:D\t2.3\t0.9\t[2]\r\nfine\t0.8\t0.6\t[1]\r\nFav\t2.4\t0.9\t[2]\r\nfav\t2.0\t0.9\t[2]\r\n\r\ngrim\t-2.125\r\n"
    "not good\t-1\nself-made\t1e-1\nneither\t0\ncan't\t-.5\n"
)
TEXTS = ("The Muslims are fine. ", "The Muslims say not good and grim, grim. ", "The Christians are fine, fine. ",
         "The Christians came. ", "Nobody was grim. ")  # fmt: skip


def rows_of(texts, language="en"):
    known = {"source": "s", "language": language, "licence": "MIT", "reason": "short"}
    return [{**known, "id": f"d{n}", "url": f"https://s{n}.example/x", "text": text} for n, text in enumerate(texts)]


def counted(rows, lexicons):
    return c.count_groups([plain.table_of(rows)], c.KEPT, lexicons)


def with_file(tmp_path, text, language="en", name="mine"):
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    (tmp_path / "words.tsv").write_bytes(data)
    return WordListsConfig(sentiment={name: {language: "words.tsv"}}, intersections=())


def test_scores_are_read_as_thousandths_without_emoticons(tmp_path):
    loaded = load_lexicons(with_file(tmp_path, VADER), tmp_path)
    assert loaded.instruments == ("sentiment", "sentiment:mine", "toxicity")
    assert loaded.scored["sentiment:mine"] == ("en",)
    weights = weights_of(loaded, "en", "sentiment:mine")
    assert weights == {"fine": 0.8, "fav": 2.2, "grim": -2.125, "not good": -1.0, "self made": 0.1, "can t": -0.5}
    assert weights_of(loaded, "en", "sentiment")["good"] == 1
    ours = load_lexicons(WordListsConfig(intersections=()))
    assert set(loaded.files) - set(ours.files) == {"sentiment:mine"}
    assert {name: loaded.files[name] for name in ours.files} == ours.files


def test_a_scored_list_has_gaps_in_its_points_that_its_words_add_up_to(tmp_path):
    lexicons = load_lexicons(with_file(tmp_path, VADER), tmp_path)
    tables = counted(rows_of(TEXTS * 40), lexicons)
    scored = [row for row in tables["scores"].to_pylist() if row["instrument"] == "sentiment:mine"]
    assert sum(row["total"] for row in scored if row["group"] == "muslim") == 40 * (800 - 5250)
    made = bias_tables(tables, choices=Choices(scored=lexicons.scored))
    rows = {(row["group"], row["against"]): row for row in made["tone"] if row["instrument"] == "sentiment:mine"}
    own = rows["muslim", "other groups"]
    assert own["metric"] == "sentiment_gap"
    assert own["value"] == pytest.approx((0.8 - 5.25) / 2 - 1.6 / 2)
    assert own["lower"] < own["value"] < own["upper"] < 0
    assert rows["muslim", "nobody"]["value"] == pytest.approx((0.8 - 5.25) / 2 + 2.125)
    weights = weights_of(lexicons, "en", "sentiment:mine")
    assert sum(share for *_, share in contributions(own, _behind(tables), weights)) == pytest.approx(own["value"])
    found = {one["id"]: one for one in findings_of(made, tables, lexicons)}
    one = found["tone/en/religion/muslim/sentiment_gap/other groups/sentiment:mine"]
    assert {name: one["effect"][name] for name in ("size", "words")} == {
        "size": "large",
        "words": "lower by 3 points of sentiment:mine per sentence",
    }
    assert [word["term"] for word in one["terms"]["words"]] == ["grim", "not good", "fine"]
    assert [row["instrument"] for row in made["representation"] if row["metric"] == "coverage"].count("sentiment:mine")


def test_a_scored_list_gives_tone_to_a_language_without_a_list_of_ours(tmp_path):
    lexicons = load_lexicons(with_file(tmp_path, "zły\t-3\ndobry\t3\n", "pl", "afinn"), tmp_path)
    texts = ["Kobieta jest zły. Mężczyzna jest dobry. ", "Kobieta jest zły. Mężczyzna był. "] * 60
    tables = counted(rows_of(texts, "pl"), lexicons)
    made = bias_tables(tables)
    assert {row["instrument"] for row in made["tone"]} == {"sentiment:afinn"}
    found = {one["group"]: one for one in findings_of(made, tables, lexicons) if one["against"] == "other groups"}
    assert found["female"]["value"] == pytest.approx(-4.5)
    assert found["female"]["terms"]["words"][0]["term"] == "zły"


def test_an_identity_term_is_no_scored_word_and_points_are_what_the_check_sees(tmp_path):
    lexicons = load_lexicons(with_file(tmp_path, "muslim\t-2\nfine\t1.5\n"), tmp_path)
    assert lexicons.left_out == 1
    assert weights_of(lexicons, "en", "sentiment:mine") == {"fine": 1.5}
    scorers = {"en": {"sentiment:mine": _list_scorers(lexicons, "en")["sentiment:mine"]}}
    assert scorers["en"]["sentiment:mine"](["A fine, fine day"]) == [3.0]
    rows = instrument_rows(scorers, {"en": _terms(lexicons)["en"]}, load_templates())
    assert biased_instruments(rows) == set()


def test_the_key_of_the_audit_follows_what_the_file_holds(tmp_path):
    keys = []
    for folder, text in (("one", VADER), ("two", VADER + ";)\t1\n"), ("three", VADER.replace("0.8", "0.9"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "v.txt").write_bytes(text.encode())
        config = BiasConfig(sentiment={"vader": {"en": f"{folder}/v.txt"}})
        made = bias_audit(corpus(tmp_path), config, Runtime(tmp_path), folder=tmp_path)
        assert set(made.config["lists"]) >= {"sentiment:vader", "sentiment"}
        keys.append(made.key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fine\t1\nbad\n", r"line 2: 'bad' is not a word, a tab and a number"),
        ("fine\t1\n\nbad\tvery\n", "line 3: 'bad very' is not"),
        ("fine 1\n", "line 1: 'fine 1' is not"),
        ("\t1\n", "line 1: .* is not a word"),
        ("fine\tnan\n", "line 1"),
        ("fine\t1001\n", "line 1.*from -1,000 to 1,000"),
        (b"fine\t1\nna\xefve\t-1\n", "line 2: is not UTF-8"),
        ("", "has no word with a score"),
        (":)\t2\nso so\t0\n", "has no word with a score"),
    ],
)
def test_a_wrong_scored_list_is_refused_with_file_and_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=rf"audit\.bias\.sentiment\.mine\.en: .*words\.tsv.*{said}"):
        load_lexicons(with_file(tmp_path, text), tmp_path)


def test_a_scored_list_of_no_language_or_of_one_twice_is_refused(tmp_path):
    class Run(Section):
        bias: BiasConfig = BiasConfig()

    with pytest.raises(ConfigError, match="'xx', which has no identity terms"):
        load_lexicons(with_file(tmp_path, VADER, "xx"), tmp_path)
    with pytest.raises(ConfigError, match=r"sentiment\.mine: names no file"):
        load_lexicons(WordListsConfig(sentiment={"mine": {}}), tmp_path)
    with pytest.raises(ConfigError, match=r"sentiment\.mine\.en: .*gone cannot be read"):
        load_lexicons(WordListsConfig(sentiment={"mine": {"en": "gone"}}), tmp_path)
    for table, said in (('mine = { en = "a", en = "b" }', "line 2"), ('"My list" = { en = "a" }', "My list")):
        (tmp_path / "run.toml").write_text(f"[bias.sentiment]\n{table}\n")
        with pytest.raises(ConfigError, match=rf"run\.toml.*(?s:.)*{said}"):
            load_config(tmp_path / "run.toml", Run)


NAMES = (
    "name\taxis\tgroup\tlanguage\nAnna\tgender\tfemale\nMary Ann\tgender\tfemale\ten\nKarl\tgender\tmale\tde\r\n"
    "Robin\tgender\tmale\nrobin\tgender\tfemale\nJamal\tethnicity\tblack\ten\nPeter\tgender\tmale\n"
    "Good\tgender\tmale\ten\nDelta She\tgender\tfemale\ten\nWill\tgender\tmale\ten\n"
)


def with_names(tmp_path, text=NAMES, **more):
    (tmp_path / "names.tsv").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return load_lexicons(WordListsConfig(names="names.tsv", **more), tmp_path)


def test_names_are_groups_of_axes_of_their_own(tmp_path, caplog):
    loaded, ours = with_names(tmp_path), load_lexicons(WordListsConfig())
    english, german = loaded.languages["en"], loaded.languages["de"]
    groups = {("gender (names)", "female"), ("gender (names)", "male")}
    assert set(english.groups) - set(ours.languages["en"].groups) == groups | {("ethnicity (names)", "black")}
    assert set(german.groups) - set(ours.languages["de"].groups) == groups
    named = {
        code: {" ".join(term): sorted(lexicon.groups[g][1] for g in of) for term, of in lexicon.identity.items()
               if term not in ours.languages[code].identity}
        for code, lexicon in loaded.languages.items()
    }  # fmt: skip
    everywhere = {"anna": ["female"], "peter": ["male"], "robin": ["female", "male"]}
    assert named["en"] == {**everywhere, "jamal": ["black"], "mary ann": ["female"], "will": ["male"]}
    assert named["de"] == {**everywhere, "karl": ["male"]}
    assert named["ko"] == everywhere
    assert loaded.left_out_names == 2, "good is praise, she a pronoun"
    assert "2 given names begin terms of other lists and were dropped" in caplog.text
    assert {name: loaded.files[name] for name in ours.files} == ours.files
    assert (set(loaded.files) - set(ours.files), ours.left_out_names) == ({"names"}, None)


PHRASES = (*plain.PHRASES, "Anna is a nurse.", "Robin and the black woman won!", "Mary Ann stole", "will, she", "Karl")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(PHRASES), max_size=5).map(" ".join), max_size=8), st.sampled_from(["en", "de"])
)
def test_names_change_no_count_of_another_group(tmp_path_factory, texts, language):
    off, on = (counted(rows_of(texts, language), lexicons) for lexicons in both(tmp_path_factory))
    for name, table in off.items():
        if "axis" not in table.column_names:
            assert name in ("terms", "documents", "categories", "shares")
        rows = [row for row in table.to_pylist() if row.get("axis") != "" or name == "fates"]
        kept = [row for row in on[name].to_pylist() if counts_no_name(name, row)]
        assert kept == rows, name


def counts_no_name(table, row):
    if table == "terms":
        return row["term"] not in {"anna", "mary ann", "karl", "robin", "peter", "jamal", "will"}
    axis = str(row.get("axis"))
    return not axis.endswith("(names)") and (axis != "" or table == "fates")


BOTH: list = []


def both(factory):
    """The lexicons without and with names, made once."""
    if not BOTH:
        BOTH.extend((load_lexicons(WordListsConfig()), with_names(factory.mktemp("names"))))
    return BOTH


def test_planted_names_have_rows_that_say_they_are_proxies(tmp_path):
    lexicons = with_names(tmp_path)
    rows = rows_of(["Anna is terrible. Nobody came. Peter is wonderful.", "Anna left. Peter is good, good."] * 40)
    tables = bias_tables(counted(rows, lexicons))
    tone = {row["group"]: row for row in tables["tone"]
            if (row["against"], row["instrument"]) == ("other groups", "sentiment")}  # fmt: skip
    assert {row["axis"] for row in tone.values()} == {"gender (names)"}
    assert (tone["female"]["value"], tone["female"]["n"]) == (-0.5 - 1.5, 80)
    assert all(PROXIES in row["note"] for rows in tables.values() for row in rows if row["axis"] == "gender (names)")
    found = with_names(tmp_path, intersections=("ethnicity x gender (names)",)).languages["en"].crossed
    assert ("ethnicity x gender (names)", "black x female") in {pair.name for pair in found}


def test_the_key_of_the_audit_follows_the_names_and_its_stats_count_those_left_out(tmp_path):
    (tmp_path / "names.tsv").write_text(NAMES)
    made = bias_audit(corpus(tmp_path), BiasConfig(names="names.tsv"), Runtime(tmp_path), folder=tmp_path)
    assert made.stats["left_out_names"] == 2
    (tmp_path / "names.tsv").write_text(NAMES.replace("Peter", "Paul"))
    other = bias_audit(corpus(tmp_path), BiasConfig(names="names.tsv"), Runtime(tmp_path), folder=tmp_path)
    without = bias_audit(corpus(tmp_path), BiasConfig(), Runtime(tmp_path))
    assert len({made.key, other.key, without.key}) == 3
    assert "left_out_names" not in without.stats
    assert "names" not in without.config["lists"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Anna\tgender\tfemale\nPeter\tgender\n", "line 2: 'Peter gender' is not name, axis, group"),
        ("Anna gender female\n", "line 1"),
        ("--\tgender\tfemale\n", "line 1"),
        ("Anna\tgender\tnone\n", "line 1"),
        ("Anna\ta x b\tfemale\n", "line 1"),
        ("Anna\tgender\tfemale\n\nPeter\tgender\tmale\txx\n", "line 3: 'xx' is not a language with identity terms"),
        (b"Anna\tgender\tfemale\nRen\xe9\tgender\tmale\n", "line 2: is not UTF-8"),
        ("name\taxis\tgroup\n", "has no name"),
        ("Good\tgender\tmale\ten\n", "each name begins a term of another list"),
    ],
)
def test_a_wrong_list_of_names_is_refused_with_file_and_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=rf"audit\.bias\.names: .*{said}"):
        with_names(tmp_path, text)

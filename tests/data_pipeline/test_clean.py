"""The clean stage: each reason, the effects of normalisation, and the laws of a stage."""

import logging
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    REMOVED_SCHEMA,
    document_shards,
    read_groups,
    read_table,
    table_writer,
)
from data_pipeline.filters.blocklists import BlocklistsConfig, make_lists
from data_pipeline.filters.clean import (
    CleanConfig,
    _clean_group,
    clean,
    listed_languages,
    measure,
    normalise_texts,
    profiles_of,
    without_lines,
)
from data_pipeline.filters.language import identify
from data_pipeline.filters.quality_rules import MAX_UNSPACED_SHARE, Thresholds, judge
from data_pipeline.normalised_text import normalise
from governance.config import canonical_json, validate
from governance.errors import ConfigError
from governance.files import sha256_bytes
from governance.manifest import describe
from governance.stage import Runtime
from tests.data_pipeline.document_artifacts import documents_of, rows_of

GOLDEN = "20388b35f2f05ff5ac1057be1b1484dbc2118808491e853fea227a33931be915"
NOUNS = ["river", "market", "teacher", "engine", "window", "harvest", "letter", "bridge", "council", "garden", "winter"]
GOOD = (
    "The ferry crossed the river before dawn, and nobody on the far shore was awake to see it arrive. An old man with "
    "a lantern counted eleven crates of apples, two barrels of tar and a wooden box that belonged to the teacher. He "
    "signed for all of them except the box. Later that morning, children who have heard the story many times came down "
    "to look for marks in the wet sand. Some said it would be opened at noon. Others thought it held nothing at all."
)


def ingested(root, shards):
    """A corpus as `ingest` leaves it: shard name -> documents as (text, changes)."""
    rows = {
        name: [
            {"id": f"{name}/file#{i}", "text": text, "file": "file", **changes}
            for i, (text, changes) in enumerate(documents)
        ]
        for name, documents in sorted(shards.items())
    }
    return documents_of(root, "ingest", rows, "a")


CORPUS = {
    "00000": [(GOOD, {}), ("", {}), (GOOD, {"licence": "NOASSERTION"}), ("Too short.", {})],
    "00001": [
        ("\ufeff" + GOOD.replace(". ", ".\r\n"), {"source": "books"}),
        ("#note " * 10 + GOOD, {"source": "books"}),
        ("人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。", {"source": "books"}),
    ],
}


def made(root, corpus=CORPUS, workers=1, lists=None, **config):
    return clean(ingested(root, corpus), CleanConfig(**config), Runtime(root=root, workers=workers), lists)


def listed(root, files, **config):
    """Lists made of files below `root`."""
    folder = root / "lists_of_mine"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return make_lists(BlocklistsConfig(**config), folder, Runtime(root=root))


def reason_of(tmp_path, text, changes=None, **config):
    manifest = made(tmp_path, {"00000": [(text, changes or {})]}, **config)
    removed = rows_of(manifest, "removed", tmp_path)
    return (removed[0]["reason"], removed[0]["evidence"]) if removed else None


def funnel_holds(stats):
    """documents_in = documents_kept + removed, in total and for each source, and the sources add up."""
    parts = list(stats["by_source"].values())
    for counts in (stats, *parts):
        assert counts["documents_in"] == counts["documents_kept"] + sum(counts["removed"].values())
    for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept"):
        assert stats[name] == sum(part[name] for part in parts)
    return True


GERMAN = "Der Fischer fuhr am Morgen auf den See, und die Kinder des Dorfes warteten am Ufer auf ihn. " * 3
DOCUMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.sampled_from(
                [GOOD, GERMAN, GOOD * 2, "Too short.", "", "\x00\ufeff", "Home page\r\n" + GOOD, "x{}"]
            ),
            "licence": st.sampled_from(["CC0-1.0", "NOASSERTION"]),
            "opt_out": st.sampled_from(["", "none", "robots:noai"]),
            "url": st.sampled_from(["", "https://bad.example/x", "https://ok.example/x"]),
            "language": st.sampled_from(["", "zxx"]),
        }
    ),
    max_size=6,
)
CONFIGS = st.builds(
    CleanConfig,
    presets=st.sampled_from([(), ("gopher",), ("fineweb",), ("c4",)]),
    c4_lines=st.sampled_from([None, True]),
    languages=st.sampled_from([(), ("en",), ("zxx", "de")]),
    refuse_opt_out=st.booleans(),
    max_document_bytes=st.sampled_from([600, 10_000]),
    identify_refused=st.booleans(),
)
BLOCKED = "bad.example"
UNMEASURED = {"too_long", "licence_refused", "opted_out", "blocked", "empty", "language_not_wanted"}


def every_rule(config, document):
    """Reasons against a document, in order, where each rule is tried on its own and nothing is left out."""
    text = pa.array([normalise(document["text"])], pa.large_string())
    code = document["language"] == "zxx"
    left, _ = without_lines(config, text, np.array([code]))
    [language], [confidence], _ = (["zxx"], [1.0], None) if code else identify(left, config.min_language_confidence)
    features = measure(config, left, listed_languages([language], [confidence]), text)
    unspaced = features["unspaced_share"] > MAX_UNSPACED_SHARE
    tried = {
        "too_long": len(document["text"].encode()) > config.max_document_bytes,
        "licence_refused": document["licence"] in config.refuse_licences,
        "opted_out": config.refuse_opt_out and document["opt_out"] not in ("", "none"),
        "blocked": BLOCKED in document["url"],
        "empty": left[0].as_py() == "",
        "language_not_wanted": bool(config.languages) and language not in config.languages,
    }
    by_features = judge(features, *profiles_of(config, [language], unspaced))[0]
    return [reason for reason, holds in tried.items() if holds] + [reason for reason in by_features if reason]


@settings(max_examples=60)
@given(DOCUMENTS, CONFIGS)
def test_the_order_of_the_rules_decides_nothing(tmp_path_factory, documents, config):
    """Documents stay that no rule would remove, if each were tried on all; the first in the order gives the reason."""
    tmp_path = tmp_path_factory.getbasetemp() / "order"
    lists = tmp_path / listed(tmp_path, {"d": BLOCKED}, domains=("d",)).folder
    rows = [
        {**dict.fromkeys(DOCUMENT_SCHEMA.names, ""), **document, "id": str(i), "position": i}
        for i, document in enumerate(documents)
    ]
    table = pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA)
    (kept, removed, features), counts = _clean_group(config, lists, None, table)
    expected = [(every_rule(config, document) or [""])[0] for document in documents]
    assert features["reason"].to_pylist() == expected
    assert kept["id"].to_pylist() == [str(i) for i, reason in enumerate(expected) if not reason]
    assert removed["text"].to_pylist() == [documents[int(i)]["text"] for i in removed["id"].to_pylist()]
    assert funnel_holds(counts)
    measured = np.array([reason not in UNMEASURED for reason in expected], bool)
    assert features["words"].is_valid().to_pylist() == measured.tolist()


@settings(max_examples=300)
@given(st.text())
def test_normalise_is_idempotent_and_leaves_nothing_unwanted(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert "\ufeff" not in once


@settings(max_examples=100)
@given(st.lists(st.tuples(st.text(max_size=30), st.booleans()), max_size=8))
def test_a_column_is_normalised_like_its_texts(items):
    texts = pa.array([text for text, _ in items], pa.large_string())
    found, changed = normalise_texts(texts, np.array([skip for _, skip in items], bool))
    expected = [text if skip else normalise(text) for text, skip in items]
    assert found.to_pylist() == expected
    assert changed == sum(a != b for a, b in zip(expected, texts.to_pylist(), strict=True))


def test_normalise_says_what_it_does():
    assert normalise("a\r\nb\rc\x0cd\x0be\x85f") == "a\nb\nc\nd\ne\nf"
    assert normalise("a\x00b\x1b[0m\x7f\u0090\ufeff") == "ab[0m"
    assert normalise("e\u0301 \u212b") == "é Å"
    assert normalise("  two  blanks\tand ‘quotes’ \u00a0 stay ") == "  two  blanks\tand ‘quotes’ \u00a0 stay "


@pytest.mark.parametrize(
    ("text", "changes", "config", "expected"),
    [
        (GOOD, {}, {}, None),
        ("", {}, {}, ("empty", "")),
        ("\x00\ufeff", {}, {}, ("empty", "")),
        ("\x00\ufeff", {}, {"presets": ()}, ("empty", "")),
        ("no stop\nno more", {}, {"presets": (), "c4_lines": True}, ("empty", "")),
        (" \n ", {}, {}, ("too_few_words", "words=0")),
        ("x" * 101, {}, {"max_document_bytes": 100}, ("too_long", "bytes=101")),
        ("é" * 51, {"licence": "NOASSERTION"}, {"max_document_bytes": 100}, ("too_long", "bytes=102")),
        (GOOD, {"licence": "NOASSERTION"}, {}, ("licence_refused", "licence=NOASSERTION")),
        (GOOD, {"licence": "NOASSERTION"}, {"refuse_licences": ()}, None),
        ("the of " * 5, {}, {}, ("too_few_words", "words=10")),
        (GOOD, {}, {"max_words": 50}, ("too_many_words", f"words={len(GOOD.split())}")),
        ("a b " * 30, {}, {}, ("words_too_short", "mean_word_length=1")),
        ("abcdefghijkl " * 60, {}, {}, ("words_too_long", "mean_word_length=12")),
        (GOOD + " \N{HORIZONTAL ELLIPSIS}" * 20, {}, {}, "too_many_ellipses"),
        ("\n".join("- " + line for line in GOOD.split(". ")), {}, {}, "too_many_bullet_lines"),
        ("\n".join("-" + line for line in GOOD.split(". ")), {}, {}, None),
        (GOOD.replace(".", "...\n"), {}, {"max_ellipsis_ratio": 1.0}, "too_many_ellipsis_lines"),
        (GOOD + " 1234 5678 91011" * 20, {}, {}, "too_few_alphabetic_words"),
        (
            " ".join(f"{a}{b}" for a in NOUNS for b in NOUNS[:6]),
            {},
            {"max_mean_word_length": 20.0},
            "too_few_stop_words",
        ),
        ("\n".join([*GOOD.split(". "), *GOOD.split(". ")]), {}, {}, ("duplicate_lines", "duplicate_line_share=0.5")),
        (GOOD + " the end of all" * 12, {}, {}, "top_3_gram"),
        (f"{GOOD} Indeed {GOOD}", {}, {}, "duplicate_5_grams"),
    ],
)
def test_each_reason(tmp_path, text, changes, config, expected):
    found = reason_of(tmp_path, text, changes, **config)
    assert (found[0] if isinstance(expected, str) else found) == expected


def test_language_filter(tmp_path):
    reason, evidence = reason_of(tmp_path, GOOD, languages=("de", "fr"))
    assert reason == "language_not_wanted"
    assert evidence.startswith("language=en confidence=0.")
    assert reason_of(tmp_path, GOOD, languages=("en",)) is None


def test_the_language_of_a_refused_document(tmp_path):
    """The audit needs it, so it is identified unless the run does without."""
    for wanted, language in ((True, "en"), (False, "und")):
        corpus = {"00000": [(GOOD, {"licence": "NOASSERTION"}), (GOOD, {})]}
        manifest = made(tmp_path / language, corpus, identify_refused=wanted)
        assert [row["language"] for row in rows_of(manifest, "removed", tmp_path / language)] == [language]
        assert [row["language"] for row in rows_of(manifest, "documents", tmp_path / language)] == ["en"]


def test_an_opt_out_is_refused(tmp_path):
    output = {"opt_out": "robots:noai tdm:reserved", "opt_out_fetched": "2026-05-04"}
    expected = ("opted_out", "robots:noai tdm:reserved fetched=2026-05-04")
    assert reason_of(tmp_path, GOOD, output) == expected
    assert reason_of(tmp_path, GOOD, output, refuse_opt_out=False) is None
    assert reason_of(tmp_path, GOOD, {"opt_out": "none", "opt_out_fetched": "2026-05-04"}) is None
    assert reason_of(tmp_path, "Too short.", output) == expected


def test_blocked_domains_and_urls(tmp_path):
    lists = listed(tmp_path, {"d": "0.0.0.0 bad.example\n", "u": "ok.example/spam\n"}, domains=("d",), urls=("u",))
    urls = ["https://sub.bad.example/x", "https://ok.example/spam/1?a", "https://ok.example/ham", "", "nonsense"]
    manifest = made(tmp_path, {"00000": [(GOOD, {"url": url}) for url in urls]}, lists=lists)
    removed = {row["url"]: (row["reason"], row["evidence"]) for row in rows_of(manifest, "removed", tmp_path)}
    assert removed == {urls[0]: ("blocked", "domain bad.example"), urls[1]: ("blocked", "url ok.example/spam")}
    assert [item.stage for item in manifest.inputs] == ["ingest", "lists"]
    assert made(tmp_path, {"00000": [(GOOD, {"url": url}) for url in urls]}).stats["removed"] == {}


def test_listed_words_go_by_language(tmp_path):
    lists = listed(tmp_path, {"en": "Box\nwet sand\n", "any": "xyzzy\n"}, words={"en": ("en",), "*": ("any",)})
    german = "Der Fischer fuhr auf den See, und die Kinder des Dorfes warteten an der Box am Ufer auf ihn. " * 3
    corpus = {"00000": [(GOOD, {}), (german, {}), ("Xyzzy. " + german, {})]}
    manifest = made(tmp_path, corpus, lists=lists, presets=("c4",))
    features = rows_of(manifest, "features", tmp_path)
    assert [(row["language"], row["listed_words"]) for row in features] == [("en", 3.0), ("de", 0.0), ("de", 1.0)]
    assert [row["reason"] for row in features] == ["listed_words", "", "listed_words"]
    assert made(tmp_path, corpus, lists=lists, presets=("c4",), max_listed_words=3).stats["removed"] == {}
    without = rows_of(made(tmp_path, corpus, presets=("c4",)), "features", tmp_path)
    assert [row["listed_words"] for row in without] == [None] * 3


def test_a_rule_on_listed_words_without_a_list_is_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("data_pipeline"), "propagate", True)
    made(tmp_path / "a")
    assert "max_listed_words" not in caplog.text
    made(tmp_path / "b", presets=("c4",))
    assert "max_listed_words has no effect" in caplog.text


def test_lists_are_part_of_the_recipe(tmp_path):
    lists = listed(tmp_path, {"d": "bad.example\n"}, domains=("d",))
    one = made(tmp_path, lists=lists)
    assert made(tmp_path, lists=lists) == one
    assert made(tmp_path, lists=listed(tmp_path, {"d": "worse.example\n"}, domains=("d",))).key != one.key
    assert made(tmp_path).key != one.key


def test_lines_are_cut_out_and_counted(tmp_path):
    text = f"Home page\nRead our privacy policy before you use this site.\n{GOOD}\nOne more."
    manifest = made(tmp_path, {"00000": [(text, {}), (GOOD, {}), ("Too short.", {})]}, c4_lines=True)
    kept = rows_of(manifest, "documents", tmp_path)
    assert [row["text"] for row in kept] == [GOOD, GOOD]
    assert kept[0]["sha256"] == sha256_bytes(text.encode())
    stats = manifest.stats
    assert {reason: number for reason, number in stats["lines_removed"].items() if number} == {
        "no_terminal_punctuation": 1, "policy": 1, "too_few_words": 2,
    }  # fmt: skip
    assert stats["bytes_in"] == len(text) + len(GOOD) + len("Too short.")
    assert stats["bytes_kept"] == 2 * len(GOOD)
    assert funnel_holds(stats)
    assert rows_of(manifest, "removed", tmp_path)[0]["text"] == "Too short."
    assert made(tmp_path, {"00000": [(text, {})]}).stats["lines_removed"] == {}


def test_bounds_of_a_language(tmp_path):
    german = "Der Fischer fuhr am Morgen auf den See, und die Kinder des Dorfes warteten am Ufer auf ihn."
    english = "The fisherman went out on the lake in the morning, and the children of the village waited for him."
    corpus = {"00000": [(german, {}), (english, {})]}
    config = {"by_language": {"de": Thresholds(min_words=10)}}
    manifest = made(tmp_path, corpus, **config)
    assert [row["language"] for row in rows_of(manifest, "documents", tmp_path)] == ["de"]
    assert manifest.stats["removed"] == {"too_few_words": 1}
    assert manifest.stats["languages"] == {"de": 1, "en": 1}


def test_text_without_spaces_has_bounds_of_its_own(tmp_path):
    chinese = (
        "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。"
        "人人有资格享有本宣言所载的一切权利和自由，不分种族、肤色、性别、语言、宗教、政治或其他见解、"
        "国籍或社会出身、财产、出生或其他身份等任何区别。并且不得因一人所属的国家或领土的政治的、"
        "行政的或者国际的地位之不同而有所区别，无论该领土是独立领土、托管领土或者处于其他任何主权受限制的情况之下。"
    )
    manifest = made(tmp_path, {"00000": [(chinese, {}), (chinese[:60], {}), (GOOD, {})]})
    assert [row["language"] for row in rows_of(manifest, "documents", tmp_path)] == ["zh", "en"]
    assert manifest.stats["unspaced"] == 2
    assert [row["unspaced"] for row in rows_of(manifest, "features", tmp_path)] == [True, True, False]


def test_a_shard_is_read_a_row_group_at_a_time(tmp_path, monkeypatch):
    """Only one row group is in memory at once, however many a shard has; the order of the rows is kept."""
    source = ingested(tmp_path, {"00000": [(f"{GOOD} Number {n} of the list.", {}) for n in range(40)]})
    path = source.files("documents", tmp_path)[0]
    table = read_table(path)
    with table_writer(path, DOCUMENT_SCHEMA) as append:
        for start in range(0, 40, 10):
            append(table.slice(start, 10))
    assert pq.ParquetFile(path).num_row_groups == 4
    seen = []

    def watched(shard):
        for group in read_groups(shard):
            seen.append(len(group))
            yield group

    monkeypatch.setattr("data_pipeline.documents.read_groups", watched)
    source = source.model_copy(update={"outputs": (describe(path, tmp_path),)})
    manifest = clean(source, CleanConfig(), Runtime(root=tmp_path))
    assert seen == [10] * 4
    for role in ("documents", "features"):
        [made_path] = manifest.files(role, tmp_path)
        assert pq.ParquetFile(made_path).num_row_groups == 4
        assert [row["id"] for row in rows_of(manifest, role, tmp_path)] == table["id"].to_pylist()
    whole = made(tmp_path / "whole", {"00000": [(f"{GOOD} Number {n} of the list.", {}) for n in range(40)]})
    assert whole.stats == manifest.stats
    assert rows_of(whole, "features", tmp_path / "whole") == rows_of(manifest, "features", tmp_path)


def test_a_document_of_fifty_megabytes_is_removed_unread(tmp_path):
    huge = "word " * 10_000_000
    manifest = made(tmp_path, {"00000": [(huge, {}), (GOOD, {})]})
    assert manifest.stats["removed"] == {"too_long": 1}
    assert manifest.stats["bytes_in"] == len(huge) + len(GOOD)
    features = rows_of(manifest, "features", tmp_path)
    assert features[0]["words"] is None
    assert features[1]["words"] == len(GOOD.split())


def test_what_is_written(tmp_path):
    manifest = made(tmp_path)
    for role, schema in (("documents", DOCUMENT_SCHEMA), ("removed", REMOVED_SCHEMA)):
        for path in manifest.files(role, tmp_path):
            read_table(path, schema)
    source = rows_of(ingested(tmp_path, CORPUS), "documents", tmp_path)
    by_id = {row["id"]: row for row in source}
    kept, removed = (rows_of(manifest, role, tmp_path) for role in ("documents", "removed"))
    features = rows_of(manifest, "features", tmp_path)
    assert [row["id"] for row in features] == [row["id"] for row in source]
    assert sorted(row["id"] for row in kept + removed) == sorted(by_id)
    assert all(row["text"] == by_id[row["id"]]["text"] for row in removed)
    assert all(row["text"] == normalise(by_id[row["id"]]["text"]) for row in kept)
    assert all(row["sha256"] == by_id[row["id"]]["sha256"] for row in kept)
    assert {row["id"] for row in features if row["kept"]} == {row["id"] for row in kept}
    assert {row["id"]: row["reason"] for row in features if not row["kept"]} == {
        row["id"]: row["reason"] for row in removed
    }


def test_counts_add_up(tmp_path):
    stats = made(tmp_path).stats
    assert stats["documents_in"] == 7
    assert stats["removed"] == {"empty": 1, "licence_refused": 1, "too_few_words": 2, "too_many_hashes": 1}
    assert sorted(stats["by_source"]) == ["books", "web"]
    assert funnel_holds(stats)
    assert (stats["normalised"], stats["unspaced"]) == (1, 1)


def test_no_document_at_all(tmp_path):
    stats = made(tmp_path, {}).stats
    assert (stats["documents_in"], stats["removed"], stats["by_source"]) == (0, {}, {})
    assert made(tmp_path / "b", {"00000": []}).stats == stats


def test_workers_and_resuming_change_nothing(tmp_path):
    one = made(tmp_path / "one")
    two = made(tmp_path / "two", workers=2)
    assert one.digest == two.digest
    root = tmp_path / "one"
    one.files("documents", root)[0].unlink()
    assert made(root).digest == one.digest
    (root / one.path).unlink()
    before = one.files("documents", root)[0].stat().st_mtime_ns
    assert made(root).digest == one.digest
    assert one.files("documents", root)[0].stat().st_mtime_ns == before


def test_a_changed_shard_remakes_itself_alone(tmp_path):
    first = made(tmp_path)
    second = made(tmp_path, {**CORPUS, "00001": [*CORPUS["00001"], (GOOD + " More.", {})]})
    assert first.key != second.key
    before, after = ([path.stat().st_ino for _, path in document_shards(m, tmp_path)] for m in (first, second))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_settings_are_strict():
    with pytest.raises(ConfigError, match="min_word"):
        validate({"min_word": 3}, CleanConfig, "run.toml")
    with pytest.raises(ConfigError, match="max_hash_ratio"):
        validate({"max_hash_ratio": -1.0}, CleanConfig, "run.toml")
    for wrong in ({"presets": ["gophers"]}, {"by_language": {"english": {}}}, {"by_language": {"en": {"min_word": 1}}}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            validate(wrong, CleanConfig, "run.toml")


def test_golden_digest(tmp_path):
    """Other content needs another VERSION (the bytes of Parquet also follow the release of Arrow)."""
    content = []
    for presets in (("gopher",), ("fineweb",)):
        manifest = made(tmp_path, presets=presets)
        content += [
            manifest.stats,
            *(rows_of(manifest, role, tmp_path) for role in ("documents", "removed", "features")),
        ]
    assert sha256_bytes(canonical_json(content)) == GOLDEN

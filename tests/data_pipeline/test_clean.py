"""The clean stage: each reason, what normalisation does, and the laws of a stage."""

import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.clean import RULES, CleanConfig, clean, document_shards, judge, normalise, normalise_texts
from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, read_table, write_table
from data_pipeline.parallel import close_pool
from governance.config import canonical_json, validate
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes
from governance.manifest import Manifest, describe
from governance.stage import Runtime

GOLDEN = "86d66146b65016e3a657ae3c614ca485aad8e91fda98cb1d3e0fe9d1984a7e10"
NOUNS = ["river", "market", "teacher", "engine", "window", "harvest", "letter", "bridge", "council", "garden", "winter"]
GOOD = (
    "The ferry crossed the river before dawn, and nobody on the far shore was awake to see it arrive. An old man with "
    "a lantern counted eleven crates of apples, two barrels of tar and a wooden box that belonged to the teacher. He "
    "signed for all of them except the box. Later that morning, children who have heard the story many times came down "
    "to look for marks in the wet sand. Some said it would be opened at noon. Others thought it held nothing at all."
)


def ingested(root, shards):
    """A corpus as `ingest` leaves it: shard name -> documents as (text, changes)."""
    outputs = []
    for name, documents in sorted(shards.items()):
        rows = [
            {
                "id": f"{name}/file#{i}", "text": text, "source": "web", "url": "", "language": "",
                "licence": "CC0-1.0",
                "sha256": sha256_bytes(text.encode()), "file": "file", "position": i, **changes,
            }
            for i, (text, changes) in enumerate(documents)
        ]  # fmt: skip
        path = root / "ingest" / ("a" * 16) / "documents" / f"{name}.parquet"
        write_table(path, pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA))
        outputs.append(describe(path, root))
    values = {"stage": "ingest", "version": 1, "key": "a" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
    return Manifest(outputs=tuple(outputs), **values)


def rows_of(manifest, role, root):
    return [row for path in manifest.files(role, root) for row in pq.read_table(path).to_pylist()]


CORPUS = {
    "00000": [(GOOD, {}), ("", {}), (GOOD, {"licence": "NOASSERTION"}), ("Too short.", {})],
    "00001": [
        ("\ufeff" + GOOD.replace(". ", ".\r\n"), {"source": "books"}),
        ("#note " * 10 + GOOD, {"source": "books"}),
        ("人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心。", {"source": "books"}),
    ],
}


def made(root, corpus=CORPUS, workers=1, **config):
    return clean(ingested(root, corpus), CleanConfig(**config), Runtime(root=root, workers=workers))


def reason_of(tmp_path, text, changes=None, **config):
    manifest = made(tmp_path, {"00000": [(text, changes or {})]}, **config)
    removed = rows_of(manifest, "removed", tmp_path)
    return (removed[0]["reason"], removed[0]["evidence"]) if removed else None


@settings(max_examples=300)
@given(st.text())
def test_normalise_is_idempotent_and_leaves_nothing_unwanted(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert "\ufeff" not in once


@settings(max_examples=100, deadline=None)
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


def test_each_rule_has_its_setting_and_a_nan_breaks_none():
    fields = set(CleanConfig.model_fields)
    named = {f"{rule.bound}_{rule.feature}" for rule in RULES}
    assert named <= fields
    assert {name for name in fields - named if name not in {"min_language_confidence", "max_document_bytes"}} == {
        "refuse_licences",
        "languages",
    }
    features = {rule.feature: np.array([np.nan]) for rule in RULES}
    assert judge(CleanConfig(), features, np.ones(1, bool)) == ([""], [""])


def test_word_rules_are_not_applied_to_scripts_without_spaces(tmp_path):
    manifest = made(tmp_path)
    kept = rows_of(manifest, "documents", tmp_path)
    assert "zh" in {row["language"] for row in kept}
    assert manifest.stats["word_rules_skipped"] == 1
    assert [row["word_rules"] for row in rows_of(manifest, "features", tmp_path)].count(False) == 1


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
    assert stats["removed"] == {"empty": 1, "licence_refused": 1, "too_few_words": 1, "too_many_hashes": 1}
    parts = list(stats["by_source"].values())
    assert sorted(stats["by_source"]) == ["books", "web"]
    for counts in (stats, *parts):
        assert counts["documents_in"] == counts["documents_kept"] + sum(counts["removed"].values())
    for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept"):
        assert stats[name] == sum(part[name] for part in parts)
    assert stats["normalised"] == 1


def test_no_document_at_all(tmp_path):
    stats = made(tmp_path, {}).stats
    assert (stats["documents_in"], stats["removed"], stats["by_source"]) == (0, {}, {})
    assert made(tmp_path / "b", {"00000": []}).stats == stats


def test_workers_and_resuming_change_nothing(tmp_path):
    one = made(tmp_path / "one")
    try:
        two = made(tmp_path / "two", workers=2)
    finally:
        close_pool()
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


def test_a_look_up_makes_nothing(tmp_path):
    with pytest.raises(MissingInput, match="assay run"):
        clean(ingested(tmp_path, CORPUS), CleanConfig(), Runtime(root=tmp_path, make=False))


def test_settings_are_strict():
    with pytest.raises(ConfigError, match="min_word"):
        validate({"min_word": 3}, CleanConfig, "run.toml")
    with pytest.raises(ConfigError, match="max_hash_ratio"):
        validate({"max_hash_ratio": -1.0}, CleanConfig, "run.toml")


def test_golden_digest(tmp_path):
    """Other content wants another VERSION (the bytes of Parquet also follow the release of Arrow)."""
    manifest = made(tmp_path)
    content = [rows_of(manifest, role, tmp_path) for role in ("documents", "removed", "features")]
    assert sha256_bytes(canonical_json([manifest.stats, content])) == GOLDEN

"""Deduplication: planted truth, the promise about what is removed, and the laws of a stage."""

import json
import os
import random
import re
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.dedup.dedup import DedupConfig, dedup, earlier_corpora
from data_pipeline.dedup.duplicates import _from_the_highest
from data_pipeline.dedup.join import spill_folder
from data_pipeline.documents import (
    DOCUMENT_SCHEMA,
    KEPT_COLUMNS,
    REMOVED_SCHEMA,
    document_shards,
    read_table,
    write_table,
)
from governance.config import canonical_json, validate
from governance.errors import AlteredFile, ConfigError, MissingInput
from governance.files import sha256_bytes
from governance.manifest import describe
from governance.stage import Runtime
from tests.altered_files import flip
from tests.data_pipeline.document_artifacts import documents_of, rows_of
from tests.given_data import given_rows

GOLDEN = "20ab00cd829e775a6510e6c7bcd7ce73c0c45ab30a963627e784748dc4c92711"


def corpus(root, shards, key="b"):
    """A corpus as `clean` leaves it: shard name -> (id, text, and columns to override) of each document."""
    rows = {
        name: [
            {
                "id": identity,
                "text": text,
                "source": name,
                "language": "en",
                "file": "file",
                **(more[0] if more else {}),
            }
            for identity, text, *more in documents
        ]
        for name, documents in sorted(shards.items())
    }
    return documents_of(root, "clean", rows, key)


def words(seed, count=300):
    rng = random.Random(seed)
    return ["".join(rng.choice("bcdfghklmnprst") + rng.choice("aeiou") for _ in range(3)) for _ in range(count)]


def text(seed, count=300):
    return " ".join(words(seed, count))


def shifted(seed, share):
    """The text of `seed` whose last share of words is new: similarity (1 - share) / (1 + share), or nearly."""
    old, new = words(seed), words(seed + 10_000, round(300 * share))
    return " ".join(old[: len(old) - len(new)] + new)


def shingles(value, ngram=5):
    parts = re.findall(r"\w+", value.lower())
    return {tuple(parts[i : i + ngram]) for i in range(max(1, len(parts) - ngram + 1))}


def similarity(a, b):
    left, right = shingles(a), shingles(b)
    return len(left & right) / max(1, len(left | right))


SHARDS = {
    "0": [("a", text(1)), ("b", text(2)), ("short", "one two three")],
    "1": [("a-copy", text(1)), ("b-near", shifted(2, 0.05)), ("c", text(3) + " and some more words at its end")],
    "2": [("c-near", text(3)), ("c-near-copy", text(3)), ("short-copy", "one two three"), ("d", text(4))],
}


def made(root, shards=SHARDS, workers=1, key="b", **config):
    section = DedupConfig(**config)
    earlier = earlier_corpora(section, root)
    return dedup(corpus(root, shards, key), section, Runtime(root=root, workers=workers), earlier)


def removed_of(manifest, root):
    return {row["id"]: (row["reason"], row["evidence"]) for row in rows_of(manifest, "removed", root)}


def test_who_stays_and_who_is_named(tmp_path):
    manifest = made(tmp_path)
    near = similarity(text(2), shifted(2, 0.05))
    close = similarity(text(3), text(3) + " and some more words at its end")
    better, worse = sorted(("b", "b-near"), key=lambda i: -len(dict(SHARDS["0"] + SHARDS["1"])[i]))
    assert removed_of(manifest, tmp_path) == {
        "a-copy": ("exact_duplicate", "kept=a"),
        "short-copy": ("exact_duplicate", "kept=short"),
        worse: ("near_duplicate", f"kept={better} jaccard={near:.4f}"),
        "c-near": ("near_duplicate", f"kept=c jaccard={close:.4f}"),
        "c-near-copy": ("near_duplicate", f"kept=c jaccard={close:.4f}"),
    }
    assert manifest.stats["without_words"] == 0
    pairs = rows_of(manifest, "pairs", tmp_path)
    assert {(row["kept"], row["other"], row["removed"]) for row in pairs} == {
        (better, worse, True),
        ("c", "c-near", True),
    }


@pytest.mark.parametrize("first", [True, False])
def test_a_chain_removes_only_what_is_near_the_kept_one(tmp_path, first):
    whole = words(5, 400)
    chain = [
        ("x" if first else "z", " ".join(whole[:300])),
        ("y", " ".join(whole[30:330])),
        ("w", " ".join(whole[60:360])),
    ]
    found = removed_of(made(tmp_path, {"0": chain}), tmp_path)
    assert similarity(chain[0][1], chain[2][1]) < 0.8 < similarity(chain[0][1], chain[1][1])
    texts = dict(chain)
    for identity, (_, evidence) in found.items():
        kept = evidence.split()[0].removeprefix("kept=")
        assert kept not in found
        assert similarity(texts[identity], texts[kept]) >= 0.8


def test_thousands_of_near_copies_leave_one(tmp_path):
    copies = [
        (f"copy{i}", f"{text(6)} edition {'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}{i // 100:b}x")
        for i in range(2000)
    ]
    manifest = made(tmp_path, {"0": copies[:1000], "1": copies[1000:]})
    assert manifest.stats["documents_kept"] == 1
    assert manifest.stats["comparisons"] <= 2000


def test_planted_duplicates_are_found_and_nothing_else(tmp_path):
    shards = {
        "0": [(f"base{i}", text(100 + i)) for i in range(60)],
        "1": [(f"near{i}", shifted(100 + i, 0.04)) for i in range(60)],  # similarity 0.92
        "2": [(f"far{i}", shifted(100 + i, 0.4)) for i in range(60)],  # similarity 0.42
    }
    found = removed_of(made(tmp_path, shards), tmp_path)
    assert len(found) >= 59
    assert not any(identity.startswith("far") for identity in found)


def test_counts_add_up_and_shards_keep_their_rows(tmp_path):
    manifest = made(tmp_path)
    stats = manifest.stats
    assert stats["removed"] == {"exact_duplicate": 2, "near_duplicate": 3}
    for counts in (stats, *stats["by_source"].values()):
        assert counts["documents_in"] == counts["documents_kept"] + sum(counts["removed"].values())
    for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept"):
        assert stats[name] == sum(part[name] for part in stats["by_source"].values())
    for role, schema in (("documents", DOCUMENT_SCHEMA), ("removed", REMOVED_SCHEMA)):
        for path in manifest.files(role, tmp_path):
            assert {row["source"] for row in read_table(path, schema).to_pylist()} <= {path.stem}
    assert len(manifest.files("signatures", tmp_path)) == 3
    left = {path.name for path in (tmp_path / manifest.folder).iterdir()}
    assert left == {"documents", "removed", "signatures", "keys", "kept", "pairs", "manifest.json"}


def test_no_document_at_all(tmp_path):
    stats = made(tmp_path, {}).stats
    assert (stats["documents_in"], stats["removed"], stats["by_source"]) == (0, {}, {})
    assert made(tmp_path / "b", {"0": []}).stats == stats


def test_texts_of_the_same_length_and_of_no_length(tmp_path):
    found = removed_of(made(tmp_path, {"0": [("p", ""), ("q", ""), ("r", "x"), ("s", "y")]}), tmp_path)
    assert found == {"q": ("exact_duplicate", "kept=p")}


def test_workers_and_resuming_change_nothing(tmp_path):
    one = made(tmp_path / "one")
    two = made(tmp_path / "two", workers=2)
    assert one.digest == two.digest
    root = tmp_path / "one"
    for role in ("documents", "signatures", "keys", "kept", "pairs"):
        one.files(role, root)[0].unlink()
        assert made(root).digest == one.digest
    before = one.files("documents", root)[0].stat().st_mtime_ns
    (root / one.path).unlink()
    (root / one.folder / "join~nowhere~1").mkdir()
    assert made(root).digest == one.digest
    assert one.files("documents", root)[0].stat().st_mtime_ns == before


def test_a_changed_shard_remakes_itself_and_those_it_touches(tmp_path):
    first = made(tmp_path)
    second = made(tmp_path, {**SHARDS, "2": [*SHARDS["2"], ("e", text(9))]})
    before, after = ([path.stat().st_ino for _, path in document_shards(m, tmp_path)] for m in (first, second))
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    third = made(tmp_path, {**SHARDS, "2": [("b-better", text(2) + " " + text(10, 8))]})
    assert set(removed_of(third, tmp_path)) >= {"b"}


def test_a_spill_folder_of_a_killed_process_is_swept(tmp_path):
    import socket

    left, other = (tmp_path / f"join~{socket.gethostname()}~{process}" for process in (999999999, os.getppid()))
    left.mkdir()
    (left / "spilled").touch()
    other.mkdir()
    with spill_folder(tmp_path) as own:
        assert not left.exists()
        own.mkdir()
    assert list(tmp_path.iterdir()) == [other], "another process still runs"


def test_golden_digest(tmp_path):
    """Other content needs another VERSION (the bytes of Parquet also follow the release of Arrow)."""
    manifest = made(tmp_path)
    roles = ("documents", "removed", "kept", "pairs", "signatures", "keys")
    content = [rows_of(manifest, role, tmp_path) for role in roles]
    for row in content[4]:
        row["text_sha256"] = row["text_sha256"].hex()
    assert sha256_bytes(canonical_json([manifest.stats, content])) == GOLDEN


PAGE = {"url": "https://www.Example.org:443/a/../page?utm_source=x#top"}
AGAIN = {"url": "http://example.org/page"}


def test_one_address_leaves_one_document_if_the_texts_overlap(tmp_path):
    shards = {
        "0": [("old", shifted(1, 0.4), AGAIN), ("new", text(1) + " and a longer end", PAGE), ("other", text(1), {})],
        "1": [("chapter1", text(5), {"url": "https://example.org/book"}),
              ("chapter2", text(6), {"url": "https://example.org/book"})],
    }  # fmt: skip
    found = removed_of(made(tmp_path, shards), tmp_path)
    value = similarity(shards["0"][0][1], shards["0"][1][1])
    assert found["old"] == ("url_duplicate", f"kept=new jaccard={value:.4f}")
    assert found["other"][0] == "near_duplicate"
    assert set(found) == {"old", "other"}
    assert set(removed_of(made(tmp_path, shards, urls=False), tmp_path)) == {"other"}
    trusting = removed_of(made(tmp_path, shards, url_overlap=0.0), tmp_path)
    assert sum(identity.startswith("chapter") for identity in trusting) == 1


def test_an_address_of_a_collection_is_no_page(tmp_path):
    shards = {"0": [(f"d{i}", text(i), {"url": "https://example.org/"}) for i in range(20)]}
    manifest = made(tmp_path, shards, url_overlap=0.0)
    assert manifest.stats["urls_of_collections"] == 1
    assert manifest.stats["documents_kept"] == 20


def test_a_copy_takes_the_place_of_one_that_left_for_its_address(tmp_path):
    page = {"url": "https://example.org/p"}
    shards = {"0": [("best", text(1) + " " + text(2), page), ("left", text(1), page), ("copy", text(1), {})]}
    found = removed_of(made(tmp_path, shards), tmp_path)
    assert {identity: reason for identity, (reason, _) in found.items()} == {"left": "url_duplicate"}


@pytest.mark.parametrize(
    ("prefer", "stays"),
    [
        (("length", "source_order"), "long"),
        (("source_order", "length"), "first"),
        (("licence", "source_order"), "licensed"),
        (("url",), "addressed"),
        ((), "first"),
    ],
)
def test_who_stays_is_a_matter_of_order(tmp_path, prefer, stays):
    unknown = {"licence": "NOASSERTION"}
    shards = {
        "0": [("first", text(1) + " a", unknown)],
        "1": [("long", text(1) + " bcd", unknown), ("licensed", text(1) + " e")],
        "2": [("addressed", text(1) + " f", {**unknown, "url": "https://example.org/x"})],
    }
    found = removed_of(made(tmp_path, shards, prefer=prefer), tmp_path)
    assert {"first", "long", "licensed", "addressed"} - set(found) == {stays}


KEPT = {"old": {"date": "2023-12-31", "score": 0.9, "ns": 2**63 + 1, "text": "9.5", "time": "2024-05-01T00:30+02:00"},
        "new": {"date": "2024-01-02", "score": 3, "ns": 1.5, "kept": 10**400, "text": "3", "year": "2023",
                "time": "2024-04-30T23:00Z"},
        "best": {"date": "2024-01-02", "score": 10.5, "ns": 2**63, "text": "10", "year": "2023-05", "time": "unknown"},
        "none": {"date": None, "ns": None}}  # fmt: skip


@pytest.mark.parametrize(
    ("prefer", "stays"),
    [(("date",), "new"), (("date", "score"), "best"), (("score", "date"), "best"), (("m",), "old"), (("ns",), "old"),
     (("kept",), "new"), (("text",), "best"), (("year",), "best"), (("time",), "new")],
)  # fmt: skip
def test_the_newest_or_best_copy_stays(tmp_path, prefer, stays):
    """Kept columns and scores of classifiers; a document without a value ranks last."""
    documents = corpus(tmp_path, {"0": [("none", text(1))], "1": [(name, text(1)) for name in ("old", "new", "best")]})
    shards = documents.files("documents", tmp_path)
    table = read_table(shards[1])
    values = pa.array([json.dumps(KEPT[name]) for name in table["id"].to_pylist()], pa.large_string())
    write_table(shards[1], table.append_column(KEPT_COLUMNS, values))
    files = []
    for name, rows in {
        "0": [(0.1, True), (0.9, False)],
        "1": [(0.5, True), (1.0, False), (0.4, True), (0.2, True)],
    }.items():
        files.append(shards[0].parents[1] / "scores" / f"{name}.parquet")
        write_table(files[-1], pa.table({"m": [score for score, _ in rows], "kept": [kept for _, kept in rows]}))
    outputs = tuple(describe(path, tmp_path) for path in [*shards, *files])
    documents = documents.model_copy(update={"outputs": outputs})
    manifest = dedup(documents, DedupConfig(prefer=prefer), Runtime(root=tmp_path))
    assert set(KEPT) - set(removed_of(manifest, tmp_path)) == {stays}


@given(
    st.lists(st.tuples(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)), st.integers(-720, 840)), min_size=1)
)
def test_times_rank_by_their_moment(times):
    zoned = [time.replace(tzinfo=timezone(timedelta(minutes=minutes))) for time, minutes in times]
    ranks = _from_the_highest([*(time.isoformat() for time in zoned), "unknown", None]).tolist()
    expected = {moment: rank for rank, moment in enumerate(sorted({*zoned}, reverse=True))}
    assert ranks == [*(expected[time] for time in zoned), len(expected), len(expected) + 1]


def test_an_unknown_preference_is_refused():
    source = {"name": "web", "type": "jsonl", "licence": "MIT", "paths": ["a.jsonl"], "columns": ["date"]}
    values = {"sources": [source], "dedup": {"prefer": ["date", "lenght"]}}
    with pytest.raises(
        ConfigError, match=r"names 'lenght', which is neither length, .* `columns` of a source \(date\)"
    ):
        validate(values, DataConfig, "run.toml")


def test_short_texts_are_compared_by_all_their_words(tmp_path):
    shards = {"0": [("a", "One two!"), ("b", "one, two"), ("c", "one three"), ("d", "..."), ("e", "?!"), ("f", "...")]}
    manifest = made(tmp_path, shards)
    assert removed_of(manifest, tmp_path) == {
        "b": ("near_duplicate", "kept=a jaccard=1.0000"),
        "f": ("exact_duplicate", "kept=d"),
    }
    assert manifest.stats["without_words"] == 3


def test_numbers_count(tmp_path):
    tables = [(f"t{i}", " ".join(f"row {i * 1000 + j}" for j in range(100))) for i in range(3)]
    assert removed_of(made(tmp_path, {"0": tables}), tmp_path) == {}


def test_against_an_earlier_corpus(tmp_path):
    first = made(tmp_path)
    shards = {
        "9": [("same", text(1)), ("near", shifted(2, 0.04)), ("of-removed", text(3)), ("new", text(77)),
              ("newer", text(77) + " end")],
    }  # fmt: skip
    later = made(tmp_path, shards, key="c", against=(first.folder,))
    mark = f"corpus={first.digest[:16]}"
    found = removed_of(later, tmp_path)
    assert found["same"] == ("duplicate_of_earlier", f"kept=a {mark}")
    kept = {row["id"]: row["text"] for row in rows_of(first, "documents", tmp_path)}
    for identity, value in (("near", shifted(2, 0.04)), ("of-removed", text(3))):
        reason, evidence = found[identity]
        name = evidence.split()[0].removeprefix("kept=")
        assert reason == "duplicate_of_earlier"
        assert evidence == f"kept={name} {mark} jaccard={similarity(kept[name], value):.4f}"
    assert found["new"][0] == "near_duplicate"
    assert set(found) == {"same", "near", "of-removed", "new"}
    assert [item.digest for item in later.inputs][1:] == [first.digest]
    third = made(tmp_path, {"z": [("again", text(77) + " end")]}, key="d", against=(first.folder, later.folder))
    assert removed_of(third, tmp_path)["again"][1] == f"kept=newer corpus={later.digest[:16]}"
    absolute = made(tmp_path, shards, key="c", against=(str(tmp_path / first.path),))
    assert absolute.digest == later.digest


def test_an_earlier_corpus_of_another_kind_is_refused(tmp_path):
    first = made(tmp_path)
    with pytest.raises(ConfigError, match="ngram = 5, this is 4"):
        made(tmp_path, ngram=4, against=(first.folder,))
    with pytest.raises(MissingInput, match="nowhere"):
        made(tmp_path, against=("dedup/nowhere",))


@pytest.mark.parametrize("role", ["documents", "signatures", "keys", "kept"])
def test_an_altered_file_of_an_earlier_corpus_decides_nothing(tmp_path, role):
    first = made(tmp_path)
    altered = first.files(role, tmp_path)[0]
    flip(altered)
    with pytest.raises(AlteredFile, match=f"{role}/{altered.name}: has sha256"):
        made(tmp_path, {"9": [("same", text(1))]}, key="c", against=(first.folder,))


def test_a_document_altered_before_the_join_leaves_no_decision(tmp_path):
    """A killed run made its signature. After the text is restored, the result is that of an undisturbed run."""
    documents, path = corpus(tmp_path, SHARDS), tmp_path / "clean" / ("b" * 16) / "documents" / "1.parquet"
    whole = dedup(documents, DedupConfig(), Runtime(tmp_path))
    (tmp_path / whole.path).unlink()
    for left in (tmp_path / "dedup" / "records").glob("*.decisions.*"):
        left.unlink()
    data = path.read_bytes()
    table = pq.read_table(path)
    texts = pa.array([text(1), text(5), text(6)], table.schema.field("text").type)
    write_table(path, table.set_column(table.schema.get_field_index("text"), "text", texts).cast(DOCUMENT_SCHEMA))
    with pytest.raises(AlteredFile, match=r"1\.parquet"):
        dedup(documents, DedupConfig(), Runtime(tmp_path))
    path.write_bytes(data)
    assert dedup(documents, DedupConfig(), Runtime(tmp_path)).digest == whole.digest


def test_the_limit_of_the_join_changes_nothing(tmp_path):
    one, two = made(tmp_path / "1"), made(tmp_path / "2", join_memory_mib=256)
    assert one.digest == two.digest


def test_a_shard_that_loses_nothing_is_not_written_again(tmp_path):
    manifest = made(tmp_path, {"0": [("a", text(1))], "1": [("b", text(2)), ("c", text(2))]})
    whole, cut = document_shards(manifest, tmp_path)
    sources = {path.stem: path for path in (tmp_path / "clean" / ("b" * 16) / "documents").iterdir()}
    assert whole[1].stat().st_ino == sources["0"].stat().st_ino
    assert cut[1].stat().st_ino != sources["1"].stat().st_ino


def test_recall_and_precision_against_planted_truth(tmp_path):
    documents = [(row["id"], row["text"]) for row in given_rows("dups/docs")]
    found = removed_of(made(tmp_path, {"0": documents[::2], "1": documents[1::2]}), tmp_path)
    truth = {frozenset((row["a"], row["b"])): row for row in given_rows("dups/truth_pairs")}
    duplicates = [row for row in truth.values() if row["label"] == "dup"]
    recalled = sum(row["a"] in found or row["b"] in found for row in duplicates)
    assert recalled / len(duplicates) >= 0.99
    named = [truth.get(frozenset((one, shown.split()[0].removeprefix("kept=")))) for one, (_, shown) in found.items()]
    assert all(row is not None and row["jaccard_w5"] >= 0.8 for row in named)
    assert sum(row["label"] == "dup" for row in named) / len(named) >= 0.97

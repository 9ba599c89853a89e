"""The stage "bias": a golden, any workers, any crash; planted mentions, tones and attributes are counted exactly."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.documents import DOCUMENT_SCHEMA, REMOVED_SCHEMA, write_table
from governance.checks.bias.bias import BiasConfig, bias_audit
from governance.checks.bias.count_tables import ALL_TABLES
from governance.checks.bias.counts import _packed
from governance.checks.bias.provenance_columns import bucket_of
from governance.checks.bias.word_lists.lexicons import load_lexicons
from governance.checks.bias.word_lists.lists_config import WordListsConfig
from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes
from governance.kernels.buffers import text_buffers
from governance.kernels.mentions import count_texts, no_sums
from governance.manifest import Manifest, describe, verify
from governance.stage import Runtime
from governance.workers import take_turns
from tests.given_data import given_rows

GOLDEN = "a81784555bd9e343702dee73e219fa442cae5b811135a03d0f7ffb90ad31f402"
SENTENCES = (
    "She is a wonderful nurse. ", "The man was arrested for theft. ", "Nobody knows the colour of it. ",
    "Die Frau kam. ", "A young Muslim teacher won the match. ", "That stupid idiot! ",
    "An elderly Jewish woman read a poem. ",
)  # fmt: skip


LISTS = {
    "terms": """version = 1
[lists.en]
who = ["teacher", "woman"]
[en.age]
old = ["elderly"]
young = ["young {who}", "young muslim {who}"]
[en.gender]
female = ["she", "woman"]
male = ["man"]
[de.gender]
female = ["frau"]
""",
    "attributes": 'version = 1\n[en.occupation]\nnurse = ["nurse"]\n[en.crime]\ncrime = ["theft"]\n',
    "sentiment": 'version = 1\n[en.sentiment]\npositive = ["wonderful", "won"]\nnegative = ["stupid"]\n',
    "toxicity": 'version = 1\n[en.toxicity]\nlisted = ["stupid idiot"]\n',
    "dialects": 'version = 1\n[en.dialect]\nen-GB = ["colour"]\nen-US = ["color"]\n',
}


def rows_of(number: int, first: int = 0, **more: str) -> list[dict[str, object]]:
    """Documents that depend on their number alone."""
    rows = []
    for index in range(first, first + number):
        chance = random.Random(index)
        rows.append(
            {
                **dict.fromkeys(DOCUMENT_SCHEMA.names, ""),
                "id": f"s/f#{index}",
                "text": "".join(chance.choice(SENTENCES) for _ in range(chance.randint(1, 9))),
                "source": "s",
                "url": chance.choice(["", f"https://site{index % 5}.example/2020/{index}"]),
                "language": chance.choice(["en", "en", "de", "xx"]),
                "licence": "MIT",
                "position": index,
                **more,
            }
        )
    return rows


def artifact(root: Path, stage: str, role: str, shards: list[list[dict[str, object]]]) -> Manifest:
    outputs = []
    for number, rows in enumerate(shards):
        path = root / stage / ("a" * 16) / role / f"{number:05d}.parquet"
        schema = REMOVED_SCHEMA if role == "removed" else DOCUMENT_SCHEMA
        write_table(path, pa.Table.from_pylist(rows, schema=schema))
        outputs.append(describe(path, root))
    values = {"stage": stage, "version": 1, "key": "a" * 64, "config": {}, "inputs": (), "stats": {}, "run": {}}
    return Manifest(outputs=tuple(outputs), **values)


def corpus(root: Path, a_shard: int = 40) -> dict[str, Manifest]:
    """120 documents that stayed, and 30 that each of two filters removed."""
    kept = [rows_of(a_shard, start) for start in range(0, 120, a_shard)]
    short, copies = rows_of(30, 200, reason="short", evidence=""), rows_of(30, 300, reason="near", evidence="")
    return {
        "clean": artifact(root, "clean", "removed", [short[:10], short[10:]]),
        "dedup": artifact(root, "dedup", "removed", [copies, []]),
        "redact": artifact(root, "redact", "documents", kept),
    }


def tables_of(made: Manifest, root: Path) -> dict[str, pa.Table]:
    return {path.stem: pq.read_table(path) for path in made.files("counts", root)}


def content(made: Manifest, root: Path) -> str:
    """The digest of all rows of all tables."""
    plain = {name: table.to_pylist() for name, table in tables_of(made, root).items()}
    return sha256_bytes(json.dumps(plain, sort_keys=True).encode())


def test_golden(tmp_path):
    for name, text in LISTS.items():
        (tmp_path / f"{name}.toml").write_text(text)
    config = BiasConfig(lists={name: f"{name}.toml" for name in LISTS})
    made = bias_audit(corpus(tmp_path), config, Runtime(tmp_path), folder=tmp_path)
    assert set(tables_of(made, tmp_path)) == set(ALL_TABLES)
    assert content(made, tmp_path) == GOLDEN, "bytes changed: raise VERSION"
    assert verify(made, tmp_path) == []
    assert made.stats["documents"] == 120
    fates = tables_of(made, tmp_path)["fates"].to_pylist()
    of = Counter()
    for row in fates:
        if row["axis"] in {"", "gender"} and row["group"] in {"", "female"}:
            of[row["stage"], row["reason"]] += row["documents"]
    assert set(of) == {("kept", ""), ("clean", "short"), ("dedup", "near")}


def test_documents_without_lists_are_reported(tmp_path, caplog):
    made = bias_audit(corpus(tmp_path), BiasConfig(), Runtime(tmp_path))
    number = sum(row["language"] == "xx" for row in rows_of(120))
    assert made.stats["documents_without_terms"] == {"xx": number}
    words = f"{100 * number / 120:.0f} % of documents are in languages that no word list covers: xx"
    assert words in caplog.text
    tables = json.loads((tmp_path / made.folder / "tables.json").read_bytes())
    [row] = [row for row in tables["representation"] if row["metric"] == "coverage" and row["instrument"] is None]
    assert (row["value"], row["upper"], row["n"]) == (pytest.approx(1 - number / 120), 1.0, 120)
    assert row["note"].startswith(words)
    fates = tables_of(made, tmp_path)["fates"].to_pylist()
    silent = [row for row in fates if row["axis"] == ""]
    assert {row["language"] for row in silent} == {"xx"}
    assert sum(row["documents"] for row in silent if row["stage"] == "kept") == number


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The root and the artifact of one process over the whole corpus."""
    root = tmp_path_factory.mktemp("alone")
    return root, bias_audit(corpus(root), BiasConfig(), Runtime(root))


def test_workers_and_partitions_give_the_same_tables(tmp_path, alone):
    root, whole = alone
    two = bias_audit(corpus(tmp_path / "2"), BiasConfig(), Runtime(tmp_path / "2", workers=2))
    assert whole.digest == two.digest
    other = bias_audit(corpus(tmp_path / "3", a_shard=15), BiasConfig(), Runtime(tmp_path / "3"))
    for path in whole.files("counts", root):
        [same] = [one for one in other.files("counts", tmp_path / "3") if one.name == path.name]
        assert path.read_bytes() == same.read_bytes()


def _one_of_two(root: Path, worker: int) -> None:
    made = corpus(root)
    take_turns(Runtime(root, worker=(worker, 2)), lambda turn: bias_audit(made, BiasConfig(), turn))


def test_two_workers_of_an_array_share_the_shards(tmp_path, alone):
    corpus(tmp_path / "array")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_one_of_two, args=(tmp_path / "array", worker)) for worker in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0, 0]
    look = Runtime(tmp_path / "array", make=False)
    found = bias_audit(corpus(tmp_path / "array"), BiasConfig(), look)
    assert found.digest == alone[1].digest
    assert verify(found, tmp_path / "array") == []


def test_a_crash_is_resumed_and_only_what_changed_is_counted_again(tmp_path, monkeypatch, alone):
    from governance.checks.bias import bias, counts

    root, counted = tmp_path / "crash", []
    real = counts.count_groups

    def dying(groups, stage, *lists):
        counted.append(stage)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return real(groups, stage, *lists)

    monkeypatch.setattr(counts, "count_groups", dying)
    with pytest.raises(KeyboardInterrupt):
        bias_audit(corpus(root), BiasConfig(), Runtime(root))
    assert bias_audit(corpus(root), BiasConfig(), Runtime(root)).digest == alone[1].digest
    assert len(counted) == 3 + 5, "two of seven shards were finished"
    changed = corpus(root)
    changed["clean"] = artifact(root, "clean", "removed", [rows_of(10, 200, reason="short", evidence=""), []])
    bias_audit(changed, BiasConfig(), Runtime(root))
    assert len(counted) == 8 + 1
    assert bias.FILTERS[0] == counted[-1]


def test_other_lists_give_another_key_and_their_place_gives_none(tmp_path):
    made = bias_audit(corpus(tmp_path), BiasConfig(), Runtime(tmp_path))
    terms = 'version = 1\n[en.gender]\nfemale = ["she"]\n'
    keys = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.toml").write_text(terms)
        config = BiasConfig(lists={"terms": f"{folder}/own.toml"})
        keys.add(bias_audit(corpus(tmp_path), config, Runtime(tmp_path), folder=tmp_path).key)
    assert len(keys | {made.key}) == 2


def test_what_is_not_there_is_reported(tmp_path):
    artifacts = corpus(tmp_path)
    with pytest.raises(MissingInput, match="the artifact redact is missing"):
        bias_audit({"clean": artifacts["clean"]}, BiasConfig(), Runtime(tmp_path))
    with pytest.raises(MissingInput, match="not made yet"):
        bias_audit(artifacts, BiasConfig(), Runtime(tmp_path, make=False))
    artifacts["redact"].files("documents", tmp_path)[0].write_bytes(b"PAR1 torn")
    with pytest.raises(ManifestError, match="has 9 bytes, its manifest states"):
        bias_audit(artifacts, BiasConfig(), Runtime(tmp_path))


OURS = {
    ("race", "white"): ("ethnicity", "white"),
    ("race", "black"): ("ethnicity", "black"),
    ("race", "asian"): ("ethnicity", "asian"),
    ("race", "latino"): ("ethnicity", "latino"),
    ("orientation", "straight"): ("orientation", "heterosexual"),
    ("occupation-gender", "male"): ("gender", "male"),
    ("occupation-gender", "female"): ("gender", "female"),
}


def planted(name: str) -> tuple[dict[str, str], dict[str, list[dict[str, object]]]]:
    """The documents of a planted corpus, and the mentions planted into each."""
    texts = {row["id"]: row["text"] for row in given_rows(f"bias/{name}")}
    return texts, {row["id"]: row["mentions"] for row in given_rows(f"bias/{name}.truth")}


@pytest.mark.parametrize("name", ["skewed", "control"])
def test_planted_sentences_are_scored_as_planted(name):
    texts, truth = planted(name)
    lexicons = load_lexicons(WordListsConfig())
    english, packed = lexicons.languages["en"], _packed(lexicons, "en")
    mentions = [(texts[one][m["sent_start"] : m["sent_end"]], m) for one, own in truth.items() for m in own]
    right: dict[str, Counter[bool]] = defaultdict(Counter)
    for start in range(0, len(mentions), 64):
        part = mentions[start : start + 64]
        sums, rows = no_sums(packed), np.arange(len(part))
        buffers = text_buffers(pa.array([sentence for sentence, _ in part], pa.large_string()))
        found = count_texts(buffers, rows, rows, packed, sums)
        groups = {(row, english.everyone[group]) for row, group, *_ in found.events.tolist()}
        for row, (_, mention) in enumerate(part):
            place = int(np.argmax(sums.scores[row, :, 0, 0]))  # every group of a sentence has its score
            score, toxic = (sums.scores[row, place, lexicons.instruments.index(i)] for i in ("sentiment", "toxicity"))
            group = (mention["axis"], mention["group"])
            right["mention"][(row, OURS.get(group, group)) in groups] += 1
            right["tone"][np.sign(score[1]) == mention["sentiment"]] += 1
            right["toxicity"][bool(toxic[3]) == mention["toxic"]] += 1
            held = {english.categories[number] for number in np.flatnonzero(sums.categories[row])}
            if wanted := mention["attribute"]:
                right["attribute"][bool({("occupation", wanted), (wanted, wanted)} & held)] += 1
    agreed = {what: counts[True] / counts.total() for what, counts in right.items()}
    assert agreed["mention"] >= 0.98
    assert agreed["tone"] >= 0.98
    assert agreed["toxicity"] >= 0.99
    assert agreed["attribute"] >= 0.95


@pytest.mark.parametrize("name", ["skewed", "control"])
def test_planted_mentions_are_counted_within_their_documents(name, tmp_path):
    texts, truth = planted(name)
    blank = dict.fromkeys(DOCUMENT_SCHEMA.names, "")
    rows = [
        {**blank, "id": one, "text": text, "source": "s", "language": "en", "position": 0}
        for one, text in texts.items()
    ]
    made = bias_audit({"redact": artifact(tmp_path, "redact", "documents", [rows])}, BiasConfig(), Runtime(tmp_path))
    tables = tables_of(made, tmp_path)
    counted, toxic, wanted, harmful = Counter(), Counter(), Counter(), Counter()
    for row in tables["groups"].to_pylist():
        counted[row["axis"], row["group"]] += row["mentions"]
    for row in tables["scores"].to_pylist():
        toxic[row["axis"], row["group"]] += row["hits"] * (row["instrument"] == "toxicity")
    for mention in (mention for own in truth.values() for mention in own):
        group = (mention["axis"], mention["group"])
        wanted[OURS.get(group, group)] += 1
        harmful[OURS.get(group, group)] += mention["toxic"]
    off = sum(abs(counted[group] - number) for group, number in wanted.items())
    assert off <= 0.04 * wanted.total(), "the texts around them mention people too"
    off = sum(abs(toxic[group] - number) for group, number in harmful.items())
    assert off <= 0.05 * harmful.total(), "sentences end where they were planted to end"
    by_bucket = Counter(bucket_of(one) for one in texts)
    documents = {row["bucket"]: row["documents"] for row in tables["documents"].to_pylist()}
    assert documents == dict(by_bucket)

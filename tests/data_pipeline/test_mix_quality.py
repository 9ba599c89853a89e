"""Laws of quality mixing: the integral is exact, caps hold, copies grow with the score, one digest for all."""

import functools
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import DOCUMENT_SCHEMA, KEPT_COLUMNS, with_kept_columns, write_table
from data_pipeline.tokens.mix import (
    copies_in_words,
    copies_of,
    document_hash,
    mix,
    quality_rules,
    read_buckets,
    rows_by_cell,
    sizes_schema,
)
from data_pipeline.tokens.mix_quality import QualityConfig, bucketed, bytes_by_score, curve, divide, edges, labels
from data_pipeline.tokens.mixture_sizes import MixConfig, allocate
from governance.config import validate
from governance.errors import ConfigError, ManifestError
from governance.files import write_json
from governance.manifest import describe, write_manifest
from governance.parallel import once
from governance.reports.facts.stage_counts import stage_tables
from governance.stage import Runtime
from governance.workers import take_turns
from tests.manifests import manifest_of

CURVES = st.builds(
    QualityConfig,
    score=st.just("quality"),
    drop=st.sampled_from([0.0, 0.4, 0.333, 0.7]),
    top=st.sampled_from([0.01, 0.05, 0.2, 0.29]),
)


@settings(max_examples=60)
@given(config=CURVES, epochs=st.integers(1, 9), fill=st.floats(0.001, 1))
def test_the_curve_grows_from_zero_to_the_cap_and_has_its_integral(config, epochs, fill):
    mean = Fraction(str(fill)) * epochs * (1 - Fraction(str(config.drop)))
    ranks = [Fraction(step, 60) for step in range(61)]
    values = [curve(x, mean, epochs, config) for x in ranks]
    heights = np.array([float(high - low) * 60 for low, high in itertools.pairwise(values)])
    assert values[-1] == mean
    assert all(value == 0 for x, value in zip(ranks, values, strict=True) if x <= Fraction(str(config.drop)))
    assert (np.diff(heights) > -1e-9).all()
    assert heights.max() <= epochs + 1e-9
    if float(mean) >= 2 * config.top * epochs:  # else half of the bytes would be those of the top
        assert float(values[-1] - curve(1 - Fraction(str(config.top)), mean, epochs, config)) == pytest.approx(
            config.top * epochs
        )


@settings(max_examples=60)
@given(
    config=CURVES,
    epochs=st.integers(1, 9),
    fill=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=40),
)
def test_buckets_have_the_bytes_of_their_group(config, epochs, fill, sizes):
    size = sum(sizes)
    got = int(Fraction(str(fill)) * size * epochs * (1 - Fraction(str(config.drop))))
    bounds, buckets = divide(np.arange(len(sizes)) / 7, np.array(sizes), got, epochs, config)
    assert bounds == sorted(bounds)
    assert sum(available for available, _ in buckets) == size
    assert got - len(buckets) <= sum(given_ for _, given_ in buckets) <= got
    repeats = [Fraction(given_, available) for available, given_ in buckets if available]
    assert max(repeats) <= epochs
    for (low, few), (high, many) in itertools.pairwise(buckets):
        assert not (low and high) or Fraction(many + 1, high) >= Fraction(max(0, few - 1), low)


SCORED_SIZES = sizes_schema(MixConfig(quality=QualityConfig(score="quality")))


def sizes_table(rows):
    names = ("source", "language", "hash", "bytes", "topic", "score")
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], SCORED_SIZES)


PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # shrinking takes minutes
DOCUMENTS = st.lists(
    st.tuples(
        st.sampled_from(["web", "wiki"]),
        st.sampled_from(["", "math"]),
        st.integers(0, 900),
        st.integers(0, 20) | st.floats(-3, 3),
    ),
    min_size=30,
    max_size=120,
)


@settings(max_examples=25, phases=PHASES)
@given(documents=DOCUMENTS, epochs=st.integers(2, 7), cut=st.integers(0, 120), budget=st.integers(1, 60_000))
def test_a_group_has_its_bytes_to_one_document_whatever_the_shards(documents, epochs, cut, budget):
    config = MixConfig(max_epochs=epochs, total_bytes=budget, quality=QualityConfig(score="q"))
    rows = [
        (source, "en", document_hash(f"d{n}"), size, topic, float(score))
        for n, (source, topic, size, score) in enumerate(documents)
    ]
    sizes = {}
    for source, language, _, size, topic, _ in rows:
        sizes[source, language, topic] = sizes.get((source, language, topic), 0) + size
    try:
        allocation = allocate(sizes, config)
    except ConfigError:
        assume(False)
    found = []
    for tables in ([sizes_table(rows)], [sizes_table(rows[:cut]), sizes_table(rows[cut:])]):
        bounds, rules = quality_rules(allocation, config, lambda tables=tables: iter(tables))
        divided = pa.concat_tables(bucketed(table, bounds, config.quality, rows_by_cell) for table in tables)
        found.append((divided, copies_of(divided, rules)))
    divided, copies = found[0]
    assert copies.tolist() == found[1][1].tolist()
    lengths, scores = divided["bytes"].to_numpy(), divided["score"].to_numpy()
    assert copies.max() <= epochs
    by_score = bytes_by_score([sizes_table(rows)], rows_by_cell)
    for group, members in rows_by_cell(divided.drop_columns(["bucket"])):
        mixed = int((copies * lengths)[members].sum())
        assert mixed <= allocation.got[group]
        parts = {cell[3]: inside for cell, inside in rows_by_cell(divided) if cell[:3] == group}
        _, buckets = divide(*by_score[group], allocation.got[group], epochs, config.quality)
        named = zip(labels(config.quality), buckets, strict=False)
        open_ = [name for name, (size, given_) in named if 0 < given_ < size * epochs]
        if open_ and (copies[parts[open_[-1]]] < epochs).any():  # the bucket that takes what the others leave over
            assert allocation.got[group] - mixed < lengths[parts[open_[-1]]].max()
        for one in members.tolist():  # of equal score, equal bucket
            same = members[scores[members] == scores[one]]
            assert len({divided["bucket"][place].as_py() for place in same.tolist()}) == 1


def corpus(root, shards, kept=None, scores=None):
    """Artifacts like those of redact and classify: shards of (id, text), with values or scores."""
    made = {"redact": [], "classify": []}
    schema = with_kept_columns(DOCUMENT_SCHEMA, pa.schema([KEPT_COLUMNS] if kept else []))
    for number, rows in enumerate(shards):
        blank = {field.name: 0 if field.type == pa.int64() else "" for field in schema}
        values = [blank | {"id": name, "source": "web", "language": "en", "text": text} for name, text in rows]
        for row in values if kept else ():
            row["columns"] = json.dumps(kept[row["id"]])
        path = root / "redact" / ("r" * 16) / "documents" / f"{number:05d}.parquet"
        write_table(path, pa.Table.from_pylist(values, schema))
        made["redact"].append(describe(path, root))
        if scores:
            path = root / "classify" / ("c" * 16) / "scores" / f"{number:05d}.parquet"
            judged = [{"id": f"gone/{number}", **dict.fromkeys(scores, 0.5), "kept": False}]
            judged += [{"id": name, **{m: of[name] for m, of in scores.items()}, "kept": True} for name, _ in rows]
            write_table(path, pa.Table.from_pylist(judged))
            made["classify"].append(describe(path, root))
    manifests = []
    for stage, outputs in made.items():
        manifest = manifest_of(stage, outputs, key=stage[0])
        write_manifest(manifest, root)
        manifests.append(manifest)
    return manifests


NAMES = [f"web/f#{n}" for n in range(200)]
TEXTS = [(name, "ä" * (7 + n % 5)) for n, name in enumerate(NAMES)]
SHARDS = [TEXTS[:70], TEXTS[70:150], TEXTS[150:]]
QUALITY = {name: round((37 * n % 200) / 200, 6) for n, name in enumerate(NAMES)}
CONFIG = MixConfig(max_epochs=7, quality=QualityConfig(score="quality"))


def copies_by_id(plan, root):
    return {
        name: number
        for path, rows in zip(sorted(plan.files("plan", root)), SHARDS, strict=True)
        for (name, _), number in zip(rows, pq.read_table(path)["copies"].to_pylist(), strict=True)
    }


def test_better_documents_have_more_copies_and_the_report_shows_them(tmp_path):
    documents, scored = corpus(tmp_path, SHARDS, scores={"quality": QUALITY})
    made = mix(documents, CONFIG, Runtime(tmp_path), scored)
    copies = copies_by_id(made, tmp_path)
    sizes = {name: len(text.encode()) for name, text in TEXTS}
    assert [item.stage for item in made.inputs] == ["redact", "classify"]
    assert not any(number for name, number in copies.items() if QUALITY[name] < 0.39)
    assert all(number == 7 for name, number in copies.items() if QUALITY[name] >= 0.96)
    whole = sum(sizes.values())
    assert whole - max(sizes.values()) < made.stats["bytes_mixed"] <= whole
    buckets = made.stats["mix_by_bucket"]
    assert sum(of["bytes_got"] for of in buckets.values()) == made.stats["bytes_mixed"]
    assert sum(of["documents"] for of in buckets.values()) == 200
    [table] = stage_tables([made])
    assert table["title"] == "mix: copies by quality bucket"
    shown = {row[0]: row for row in table["rows"]}
    assert [*shown] == labels(CONFIG.quality)
    repeats = [float(row[3]) for row in table["rows"]]
    assert repeats == sorted(repeats)
    assert shown["00.0-05.0"][3] == "0.000"
    assert repeats[-1] == 7
    path = sorted(made.files("plan", tmp_path))[0]
    assert copies_in_words(copies[NAMES[0]], read_buckets(path)[0]) == "0 copies, quality bucket 00.0-05.0"


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    digests = set()
    for name, workers in (("one", 1), ("two", 2)):
        documents, scored = corpus(tmp_path / name, SHARDS, scores={"quality": QUALITY})
        digests.add(mix(documents, CONFIG, Runtime(tmp_path / name, workers), scored).digest)
    root = tmp_path / "array"
    documents, scored = corpus(root, SHARDS, scores={"quality": QUALITY})
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(
            lambda i: take_turns(
                Runtime(root, worker=(i, 2)), functools.partial(mix, documents, CONFIG, scored=scored)
            ),
            (0, 1),
        )
        digests |= {part.digest for part in parts}
    assert len(digests) == 1


def test_topics_of_columns_and_of_classifiers_rank_apart(tmp_path):
    # Scores are text, as in documents of CSV files.
    kept = {name: {"score": str(QUALITY[name] + (n % 2)), "kind": ("a", None)[n % 2]} for n, name in enumerate(NAMES)}
    of_columns = MixConfig(max_epochs=7, quality=QualityConfig(score="score", topic="kind"))
    documents, _ = corpus(tmp_path / "columns", SHARDS, kept=kept)
    copies = copies_by_id(made := mix(documents, of_columns, Runtime(tmp_path / "columns")), tmp_path / "columns")
    for topic in (0, 1):  # the offset of the second topic's scores does not matter
        assert sum(number == 7 for n, number in enumerate(copies.values()) if n % 2 == topic) >= 5
    assert {name.split()[0] for name in made.stats["mix_by_bucket"] if " " in name} == {"a"}
    models = {"quality": QUALITY, "law": dict.fromkeys(NAMES, 0.4), "math": {name: len(name) / 20 for name in NAMES}}
    of_models = MixConfig(max_epochs=7, quality=QualityConfig(score="quality", topic=("law", "math")))
    documents, scored = corpus(tmp_path / "models", SHARDS, scores=models)
    made = mix(documents, of_models, Runtime(tmp_path / "models"), scored)
    documents_of = {}
    for name, of in made.stats["mix_by_bucket"].items():
        topic = name.split()[0]
        documents_of[topic] = documents_of.get(topic, 0) + of["documents"]
    assert documents_of == {
        "law": 100,
        "math": 100,
    }  # "web/f#99" has 8 characters, which score 0.4 too: the first of equals


def test_documents_without_a_score_and_unreachable_curves_are_errors(tmp_path):
    odd = {name: {"score": 0.5} for name in NAMES}
    for number, value in enumerate((None, "high", True, 10**400, "missing")):
        odd[NAMES[5]] = {} if value == "missing" else {"score": value}
        documents, _ = corpus(tmp_path / str(number), SHARDS, kept=odd)
        with pytest.raises(ConfigError, match=r"web/f#5 has .* as 'score', which is not a number"):
            mix(documents, MixConfig(quality=QualityConfig(score="score")), Runtime(tmp_path / str(number)))
    damaged = QUALITY | {NAMES[3]: float("nan")}
    documents, scored = corpus(tmp_path / "nan", SHARDS, scores={"quality": damaged})
    with pytest.raises(ConfigError, match="web/f#3 has nan"):
        mix(documents, CONFIG, Runtime(tmp_path / "nan"), scored)
    documents, scored = corpus(tmp_path / "once", SHARDS, scores={"quality": QUALITY})
    with pytest.raises(
        ConfigError, match=r"cannot give the wanted bytes: 3600 are wanted, and .* give 2160 with max_epochs = 1"
    ):
        mix(documents, CONFIG.model_copy(update={"max_epochs": 1}), Runtime(tmp_path / "once"), scored)
    _, scored = corpus(tmp_path / "other", SHARDS, scores={"quality": QUALITY})
    documents, _ = corpus(tmp_path / "other", [[("web/f#999", "ä")], *SHARDS[1:]])
    with pytest.raises(ManifestError, match="has no scores of the document web/f#999"):
        mix(documents, CONFIG, Runtime(tmp_path / "other"), scored)


@pytest.mark.parametrize(
    ("others", "values", "words"),
    [
        ({("b", "en", ""): 0}, {"max_epochs": 1}, "give 600 with max_epochs = 1. Raise max_epochs, lower"),
        ({("b", "en", ""): 500}, {"max_epochs": 1, "weights": {"a": 1, "b": 0}}, "give 600 with max_epochs = 1"),
        ({}, {"max_epochs_of": {"a": 1}}, "give 600 with max_epochs_of.a = 1. Raise max_epochs_of.a, lower"),
    ],
)
def test_an_unreachable_curve_is_found_next_to_cells_without_bytes(others, values, words):
    config = MixConfig(quality=QualityConfig(score="q"), total_bytes=1000, **values)
    with pytest.raises(ConfigError, match=words):
        allocate({("a", "en", ""): 1000, **others}, config)


def test_rules_of_an_interrupted_older_run_are_decided_anew(tmp_path):
    documents, _ = corpus(tmp_path, SHARDS)
    config = MixConfig(total_bytes=900)
    made = mix(documents, config, Runtime(tmp_path))
    [rules] = (tmp_path / "mix" / "records").glob("*rules.json")
    for path in (rules, rules.with_name(f"{rules.name}.json"), *(tmp_path / "mix").glob("*/manifest.json")):
        path.unlink()
    older = rules.with_name(f"{rules.name.split('.')[0]}.rules.json")
    once(Runtime(tmp_path), older, lambda path: write_json(path, [["web", "en", 0, 7]]))
    assert mix(documents, config, Runtime(tmp_path)).digest == made.digest


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (
            {"score": "fluency"},
            r"which is neither a classifier \(quality\) nor in .* crawl; .*\(sources keep: fluency\)",
        ),
        ({"score": "quality", "topic": "quality"}, r'write a list: topic = \["quality", ...\]'),
        ({"score": "quality", "topic": ["law"]}, r"lists 'law', which is not a classifier"),
        ({"score": "quality", "drop": 0.6, "top": 0.4}, "leave nothing between them"),
    ],
)
def test_faults_of_the_section_are_reported(quality, words):
    source = {"type": "jsonl", "licence": "MIT", "paths": ["a.jsonl"]}
    sources = [source | {"name": "crawl"}, source | {"name": "wiki", "columns": ["fluency"]}]
    models = [{"name": "quality", "paths": ["labels.jsonl"]}]
    with pytest.raises(ConfigError, match=words):
        validate({"sources": sources, "classifiers": models, "mix": {"quality": quality}}, DataConfig, "run.toml")


def test_edges_are_twentieths_and_the_bends_of_the_curve():
    config = QualityConfig(score="q", drop=0.333, top=0.01)
    assert len(edges(config)) == 23
    assert labels(config)[6:8] == ["30.0-33.3", "33.3-35.0"]
    assert labels(config)[-1] == "99.0-100.0"

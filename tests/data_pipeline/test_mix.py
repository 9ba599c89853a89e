"""Laws of mixing: caps and quotas hold, hashes alone decide, shortfalls are reported, one digest for all."""

import functools
import json
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.documents import DOCUMENT_SCHEMA, KEPT_COLUMNS, with_kept_columns, write_table
from data_pipeline.tokens import mix as stage
from data_pipeline.tokens.mix import SIZES_SCHEMA, copies_of, document_hash, mix, thresholds
from data_pipeline.tokens.mix_quality import QualityConfig
from data_pipeline.tokens.mixture_sizes import MixConfig, Quota, allocate
from governance.config import validate
from governance.errors import ConfigError, PipelineError
from governance.manifest import describe, write_manifest
from governance.stage import Runtime
from governance.workers import take_turns
from tests.manifests import manifest_of


def read_copies(plan, shard, root):
    return next(pq.read_table(path)["copies"].to_numpy() for path in plan.files("plan", root) if path.stem == shard)


SOURCES, LANGUAGES = ("books", "web", "wiki"), ("de", "en")
CELLS = st.dictionaries(
    st.tuples(st.sampled_from(SOURCES), st.sampled_from(LANGUAGES)), st.integers(0, 10**6), min_size=1
).filter(lambda sizes: any(sizes.values()))
QUOTAS = st.builds(Quota, bytes=st.none() | st.integers(1000, 10**6), share=st.sampled_from([0.05, 0.3, 0.5, 0.7, 1.0]))
CONFIGS = st.builds(
    MixConfig,
    weights=st.just({}) | st.fixed_dictionaries({name: st.floats(0.1, 9) for name in SOURCES}),
    temperature=st.sampled_from([1.0, 1.5, 3.3333]),
    total_bytes=st.none() | st.integers(1, 10**7),
    max_epochs=st.integers(1, 5),
    max_epochs_of=st.dictionaries(st.sampled_from(SOURCES), st.integers(0, 9)),
    source_quotas=st.dictionaries(st.sampled_from(SOURCES), QUOTAS, max_size=2),
    language_quotas=st.dictionaries(st.sampled_from(LANGUAGES), QUOTAS, max_size=1),
)


def total(values, axis, name):
    return sum(value for cell, value in values.items() if cell[axis] == name)


@settings(max_examples=300)
@given(sizes=CELLS, config=CONFIGS)
def test_caps_and_quotas_hold_and_nothing_is_raised(sizes, config):
    try:
        made = allocate(sizes, config)
    except PipelineError as error:
        assert "nothing is left" in str(error)  # noqa: PT017
        return
    whole = sum(made.got.values())
    budget = config.total_bytes or sum(sizes.values())
    assert budget - len(sizes) <= sum(made.wanted.values()) <= budget
    for cell, size in sizes.items():
        assert 0 <= made.got[cell] <= made.wanted[cell]
        assert made.got[cell] <= size * config.max_epochs_of.get(cell[0], config.max_epochs)
    for axis, quotas in enumerate((config.source_quotas, config.language_quotas)):
        for name, quota in quotas.items():
            got = total(made.got, axis, name)
            assert quota.bytes is None or got <= quota.bytes
            assert got - 1 <= Fraction(str(quota.share)) * whole
    for axis, names in ((0, SOURCES), (1, LANGUAGES)):
        for name in names:
            if total(made.got, axis, name) < total(made.wanted, axis, name):
                assert any(name in note and "wanted" in note for note in made.notes)


def test_by_default_every_document_comes_once():
    sizes = {("web", "en"): 10**15 + 7, ("web", "de"): 3, ("wiki", "en"): 12}
    made = allocate(sizes, MixConfig())
    assert made.got == made.wanted == sizes
    assert made.notes == []


def test_weights_are_shares_and_a_cap_is_reported_in_words():
    sizes = {("web", "en"): 90_000, ("wiki", "en"): 6_000, ("wiki", "de"): 4_000}
    made = allocate(sizes, MixConfig(weights={"web": 3, "wiki": 3}))
    assert made.wanted == {("web", "en"): 50_000, ("wiki", "en"): 30_000, ("wiki", "de"): 20_000}
    assert made.got == {("web", "en"): 50_000, ("wiki", "en"): 24_000, ("wiki", "de"): 16_000}
    assert "source wiki: wanted 50000 bytes, got 40000: max_epochs allow 40000" in made.notes
    assert "the mixture: wanted 100000 bytes, got 90000; no other source was raised to replace them" in made.notes


@settings(max_examples=100)
@given(sizes=CELLS, temperature=st.sampled_from([1.5, 2.0, 3.3333]), axis=st.sampled_from([0, 1]))
def test_temperature_equals_the_published_formula(sizes, temperature, axis):
    config = MixConfig(
        temperature=temperature, temperature_over=("source", "language")[axis], total_bytes=10**9, max_epochs=10**9
    )
    made = allocate(sizes, config)
    names = {cell[axis] for cell in sizes}
    bent = {name: total(sizes, axis, name) ** (1 / temperature) for name in names}
    for name in names:
        assert total(made.wanted, axis, name) == pytest.approx(10**9 * bent[name] / sum(bent.values()), abs=10)


def test_shares_that_add_up_to_one_do_not_shrink_each_other_to_nothing():
    sizes = {("a", "en"): 7_000_003, ("b", "en"): 1_500_001, ("b", "de"): 1_499_993}
    made = allocate(sizes, MixConfig(source_quotas={"a": Quota(share=0.7), "b": Quota(share=0.3)}))
    assert sum(made.got.values()) > 9_999_000
    with pytest.raises(PipelineError, match="add up to less than 1"):
        allocate(sizes, MixConfig(source_quotas={"a": Quota(share=0.6), "b": Quota(share=0.3)}))


@pytest.mark.parametrize("share", [0.3, 0.499, 0.499999])
def test_quotas_of_sources_and_languages_that_cannot_hold_together_are_reported(share):
    sizes = {("a", "en"): 10**12, ("b", "de"): 10**12}
    quotas = {"source_quotas": {"a": Quota(share=0.5)}, "language_quotas": {"de": Quota(share=share)}}
    with pytest.raises(PipelineError, match="nothing is left"):
        allocate(sizes, MixConfig(**quotas))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"weights": {"a": -1.0}}, "must not be negative"),
        ({"weights": {"a": 0.0}}, "at least one"),
        ({"source_quotas": {"a": {}}}, "needs bytes, share"),
        ({"weights": {"a": 1.0}, "temperature": 2.0, "temperature_over": "source"}, "drop them"),
        ({"temperature": 0.5}, "must be at least 1"),
    ],
)
def test_faults_of_the_section_are_reported(values, words):
    with pytest.raises(ConfigError, match=words):
        validate(values, MixConfig, "run.toml")


def test_a_source_without_a_weight_is_an_error():
    with pytest.raises(PipelineError, match=r"does not name the source\(s\) wiki"):
        allocate({("web", "en"): 5, ("wiki", "en"): 5}, MixConfig(weights={"web": 1}))


def plain_copies(documents, got):
    """The slow reference: whole epochs, then documents in the order of their hashes while they fit."""
    copies = {}
    for cell, room in got.items():
        members = sorted((document_hash(name), name, size) for name, c, size in documents if c == cell)
        size = sum(size for _, _, size in members)
        epochs, rest = divmod(room, size) if size else (0, 0)
        open_ = True
        for _, name, bytes_ in members:
            rest -= bytes_
            open_ = open_ and rest >= 0
            copies[name] = epochs + (open_ and room % max(size, 1) > 0)
    return copies


def tables_of(documents, cut):
    rows = [
        {"source": cell[0], "language": cell[1], "hash": document_hash(name), "bytes": size}
        for name, cell, size in documents
    ]
    return [pa.Table.from_pylist(part, SIZES_SCHEMA) for part in (rows[:cut], rows[cut:])]


@settings(max_examples=100)
@given(
    members=st.lists(st.tuples(st.sampled_from(SOURCES), st.sampled_from(LANGUAGES), st.integers(0, 99)), max_size=60),
    budget=st.integers(1, 9000),
    cut=st.integers(0, 60),
)
def test_documents_are_chosen_by_hash_whatever_the_shards(members, budget, cut):
    documents = [(f"d{n}", (source, language), size) for n, (source, language, size) in enumerate(members)]
    sizes = {}
    for _, cell, size in documents:
        sizes[cell] = sizes.get(cell, 0) + size
    if not any(sizes.values()):
        return
    try:
        allocation = allocate(sizes, MixConfig(total_bytes=budget, temperature=2.0, max_epochs=9))
    except PipelineError:
        return
    tables = tables_of(documents, cut)
    rules = thresholds(allocation.got, sizes, lambda: iter(tables))
    found = [number for table in tables for number in copies_of(table, rules).tolist()]
    wanted = plain_copies(documents, allocation.got)
    assert found == [wanted[name] for name, _, _ in documents]
    for cell in sizes:
        mixed = sum(n * size for n, (_, c, size) in zip(found, documents, strict=True) if c == cell)
        assert mixed <= allocation.got[cell]


def corpus(root, shards, columns=None):
    """A redact-like artifact: shards of (id, source, language, text), with kept values by id."""
    outputs = []
    schema = with_kept_columns(DOCUMENT_SCHEMA, pa.schema([KEPT_COLUMNS] if columns else []))
    for number, rows in enumerate(shards):
        path = root / "redact" / ("d" * 16) / "documents" / f"{number:05d}.parquet"
        blank = {field.name: 0 if field.type == pa.int64() else "" for field in schema}
        values = [
            {**blank, **dict(zip(("id", "source", "language", "text"), row, strict=True)), "position": place}
            for place, row in enumerate(rows)
        ]
        for row in values if columns else ():
            row["columns"] = json.dumps(columns[row["id"]])
        write_table(path, pa.Table.from_pylist(values, schema))
        outputs.append(describe(path, root))
    manifest = manifest_of("redact", outputs, key="d")
    write_manifest(manifest, root)
    return manifest


def rows(count):
    return [
        (f"{'web' if n % 3 else 'wiki'}/f#{n}", "web" if n % 3 else "wiki", "en" if n % 2 else "de", "ä" * (n % 17 + 1))
        for n in range(count)
    ]


CONFIG = MixConfig(weights={"web": 1, "wiki": 3}, total_bytes=4000, max_epochs=3)


def test_the_stage_counts_and_reports(tmp_path):
    documents = rows(120)
    made = mix(corpus(tmp_path, [documents[:50], documents[50:]]), CONFIG, Runtime(tmp_path))
    copies = [*read_copies(made, "00000", tmp_path).tolist(), *read_copies(made, "00001", tmp_path).tolist()]
    stats = made.stats
    sizes = [len(text.encode()) for *_, text in documents]
    assert stats["documents_in"] == 120 == stats["documents_kept"] + stats["removed"]["mix_quota"]
    assert stats["documents_kept"] == sum(number > 0 for number in copies)
    assert stats["copies"] == sum(copies)
    assert stats["bytes_kept"] == sum(size for size, number in zip(sizes, copies, strict=True) if number)
    assert stats["bytes_mixed"] == sum(size * number for size, number in zip(sizes, copies, strict=True))
    wiki = stats["mix_by_source"]["wiki"]
    assert wiki["bytes_wanted"] in (2999, 3000)
    assert wiki["share_wanted_ppm"] in range(749_000, 751_000)
    assert wiki["bytes_got"] == 3 * wiki["bytes_in"] < 3000
    assert wiki["epochs_thousandths"] == 3000
    assert any(note.startswith("source wiki: wanted") for note in stats["notes"])


@pytest.mark.parametrize("quality", [None, QualityConfig(score="score")])
def test_values_of_a_column_are_mixed_as_sources_are(tmp_path, quality):
    """The same plan, whether the parts are sources or values of a column."""
    documents = rows(120)
    values = {name: {"topic": source, "score": n % 13} for n, (name, source, _, _) in enumerate(documents)}
    config = CONFIG.model_copy(update={"quality": quality, "max_epochs_of": {"wiki": 2}})
    whole = corpus(tmp_path / "source", [documents[:50], documents[50:]], values)
    by_source = mix(whole, config, Runtime(tmp_path / "source"))
    one = [(name, "crawl", language, text) for name, _, language, text in documents]
    by_column = mix(
        corpus(tmp_path / "column", [one[:50], one[50:]], values),
        config.model_copy(update={"by": "topic"}),
        Runtime(tmp_path / "column"),
    )
    for shard in ("00000", "00001"):
        plans = [
            read_copies(made, shard, root).tolist()
            for made, root in ((by_source, tmp_path / "source"), (by_column, tmp_path / "column"))
        ]
        assert plans[0] == plans[1]
        assert len(set(plans[0])) > 2
    assert by_column.stats["mix_by_column"] == by_source.stats["mix_by_source"]
    assert by_column.stats["by_source"]["crawl"]["documents_in"] == 120
    assert any(note.startswith("topic wiki: wanted") for note in by_column.stats["notes"])


def test_documents_without_the_value_are_a_part_of_their_own(tmp_path):
    documents = rows(30)
    values = {name: {"topic": (None, 7, True, "law")[n % 4]} for n, (name, *_) in enumerate(documents)}
    made = mix(corpus(tmp_path, [documents], values), MixConfig(by="topic", max_epochs_of={"": 0}), Runtime(tmp_path))
    assert set(made.stats["mix_by_column"]) == {"", "7", "true", "law"}
    assert [part for part, of in made.stats["mix_by_column"].items() if not of["bytes_got"]] == [""]
    with pytest.raises(
        ConfigError, match=r'does not name the topic\(s\) "", 7, true; .*The corpus has: "", 7, law, true'
    ):
        mix(corpus(tmp_path, [documents], values), MixConfig(by="topic", weights={"law": 1}), Runtime(tmp_path))


def test_a_column_that_does_not_group_or_is_not_kept_is_refused(tmp_path):
    documents = [(f"web/{n}", "web", "en", "a") for n in range(1001)]
    values = {name: {"url": name} for name, *_ in documents}
    with pytest.raises(ConfigError, match="has 1,001 different values, such as 'web/999'"):
        mix(corpus(tmp_path, [documents], values), MixConfig(by="url"), Runtime(tmp_path))
    sources = [{"type": "jsonl", "name": name, "licence": "MIT", "paths": ["x"], "columns": columns}
               for name, columns in (("a", ["topic"]), ("b", []))]  # fmt: skip
    with pytest.raises(ConfigError, match=r"mix.by names 'topic', which is neither .* of the source\(s\) b"):
        validate({"sources": sources, "mix": {"by": "topic"}}, DataConfig, "run.toml")


def test_a_larger_share_keeps_what_a_smaller_one_had(tmp_path):
    documents = corpus(tmp_path, [rows(200)])
    before = None
    for budget in (300, 900, 1400):
        made = mix(documents, MixConfig(total_bytes=budget), Runtime(tmp_path))
        copies = read_copies(made, "00000", tmp_path)
        assert before is None or (copies >= before).all()
        before = copies


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    documents = rows(120)
    shards = [documents[:50], documents[50:90], documents[90:]]
    digests = set()
    for name, workers in (("one", 1), ("two", 2)):
        digests.add(mix(corpus(tmp_path / name, shards), CONFIG, Runtime(tmp_path / name, workers)).digest)
    root = tmp_path / "array"
    source = corpus(root, shards)
    with ThreadPoolExecutor(2) as pool:
        parts = pool.map(
            lambda i: take_turns(Runtime(root, worker=(i, 2)), functools.partial(mix, source, CONFIG)), (0, 1)
        )
        digests |= {part.digest for part in parts}
    assert len(digests) == 1


def test_the_stage_has_not_changed_without_its_version(tmp_path):
    made = mix(corpus(tmp_path, [rows(30)]), CONFIG.model_copy(update={"total_bytes": 500}), Runtime(tmp_path))
    copies = "".join(map(str, read_copies(made, "00000", tmp_path).tolist()))
    assert (stage.VERSION, copies, made.stats["bytes_mixed"]) == (3, GOLDEN, GOLDEN_BYTES)


GOLDEN, GOLDEN_BYTES = "300200211200210300210200300210", 450

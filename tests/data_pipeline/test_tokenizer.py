"""The tokenizer: the same file every time, the same ids from both engines, the text back from the ids."""

import itertools
import json
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tokens import encoder as encoding
from data_pipeline.tokens import tokenizer as subject
from data_pipeline.tokens import training_sample
from data_pipeline.tokens.encoder import segments
from data_pipeline.tokens.parity import awkward_strings, every_character
from data_pipeline.tokens.tokenizer import TokenizerConfig, load_encoder, train_tokenizer
from data_pipeline.tokens.training_sample import choose_sample, sample_texts
from data_pipeline.tokens.vocabulary import alphabet, definition_of_text, ranks_text, read_vocabulary
from governance.config import validate
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError
from governance.manifest import write_manifest
from governance.stage import Runtime
from tests.data_pipeline.document_artifacts import documents_of

CONFIG = TokenizerConfig(vocabulary_size=600)
PHRASES = [
    "the quick brown fox isn't here. ",
    "Der schnelle Fuchs läuft über 12 Wiesen.\n",
    "def f(x):\n    return x + 1\n",
]


def artifact(root, texts_by_shard):
    shards = {
        f"{number:05}": [
            {
                "id": f"s/f{number}#{place}",
                "text": text,
                "source": f"s{place % 3}",
                "language": "en",
                "file": "f",
                "sha256": "0" * 64,
            }
            for place, text in enumerate(texts)
        ]
        for number, texts in enumerate(texts_by_shard)
    }
    manifest = documents_of(root, "redact", shards)
    write_manifest(manifest, root)
    return manifest


CORPUS = [[PHRASES[place % 3] * (1 + place % 5) + str(place) for place in range(40)], ["", "中文字 <|endoftext|> é"]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    return root, train_tokenizer(artifact(root, CORPUS), CONFIG, Runtime(root))


@pytest.fixture(scope="module")
def encoder(trained):
    root, manifest = trained
    return load_encoder(manifest, root)


@pytest.fixture(scope="module")
def reference(trained):
    root, manifest = trained
    return subject.open_reference((root / manifest.folder / "tokenizer.json").read_text(encoding="utf-8"))


def test_the_stage_writes_both_files_and_its_counts(trained):
    _, manifest = trained
    assert [output.path.rpartition("/")[2] for output in manifest.outputs] == ["tokenizer.json", "tokenizer.tiktoken"]
    stats = manifest.stats
    assert stats["parity"] is True
    assert (stats["documents"], stats["sample_documents"], stats["end_of_document"]) == (42, 41, 0)
    assert stats["vocabulary_size"] <= CONFIG.vocabulary_size
    assert manifest.digest == GOLDEN, "bytes changed: raise VERSION in data_pipeline/tokens/tokenizer.py"


def test_training_reports_how_far_its_reading_is(monkeypatch):
    came = []
    monkeypatch.setattr(subject, "progress", lambda name, total, unit: nullcontext(came.append))
    stretches = [part.decode() for part in subject._stretches(["ab", "", "ü" * 70_000], 140_002)]
    assert stretches == ["ab", "", "ü" * 65_536, "ü" * 4464]
    assert came == [2e-6, 0, 0.14]


GOLDEN = "91752e7e2d8caaec77fb2cacf17ac60da3d1de42ff400f12ecc1181d8a5bfd12"


MIXED = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [*PHRASES, "<|endoftext|>", "  ", "\n\n", "\r\n", "'s", "\u00a0", "\u2028", "\x85", "\x1c", "🙂", "٣"]
        ),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=300)
@given(text=MIXED)
def test_both_engines_agree_and_the_text_comes_back(encoder, reference, text):
    assert encoder.engine == "gigatoken"
    ids = encoder.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == reference.encode(text).ids
    assert encoder.decode(ids) == text
    assert encoder.end_of_document not in ids


def test_every_character_comes_back(encoder):
    for text in every_character():
        assert encoder.decode(encoder.encode(text)) == text


def test_documents_are_closed_and_special_tokens_are_silent(encoder):
    first, empty = encoder.encode_documents(["a<|endoftext|>b", ""])
    assert first[-1] == 0
    assert 0 not in first[:-1]
    assert empty.tolist() == [0]
    assert encoder.decode(first) == "a<|endoftext|>b"
    assert not encoder.is_text(0)
    assert encoder.is_text(1)
    assert not encoder.is_text(encoder.vocabulary_size)


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["word ", "\n", "  ", "x", "中", "a\u00a0", "'s"]), max_size=30), st.integers(1, 9))
def test_cutting_at_words_changes_no_id(reference, parts, limit):
    """Tiny segments: joined, they are the text; each cut is before white space, and the ids are the same."""
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_SEGMENT_CHARACTERS", limit)
        pieces = list(segments(text))
    assert "".join(pieces) == text
    assert all(right[0] in " \n" and not left[-1].isspace() for left, right in itertools.pairwise(pieces))
    assert [i for piece in pieces for i in reference.encode(piece).ids] == reference.encode(text).ids


def test_segments_are_short_where_there_are_words():
    text = "a word, " * 100_000
    assert max(map(len, segments(text))) <= 1 << 16
    assert list(segments("x" * 200_000)) == ["x" * 200_000]


@pytest.mark.parametrize("unit", ["a", " ", "\n", "中", "ab ", "1", "\t \n", "!", "'s"])
@pytest.mark.parametrize("end", ["", "x"])
def test_long_runs_are_encoded(encoder, unit, end):
    text = unit * 1_000_000 + end if len(unit) == 1 else unit * 300_000 + end
    assert encoder.decode(encoder.encode(text)) == text


def test_the_fallback_gives_the_same_ids(trained, encoder):
    root, manifest = trained
    unequal = manifest.model_copy(update={"stats": {**manifest.stats, "parity": False}})
    slow = load_encoder(unequal, root)
    assert slow.engine == "tokenizers"
    for text in awkward_strings():
        assert slow.encode(text).tolist() == encoder.encode(text).tolist()


def test_a_disagreeing_engine_closes_the_gate(trained, tmp_path, monkeypatch):
    """A fast engine whose letters a and b are exchanged: the stage and the load notice, and use `tokenizers`."""
    right = subject.fast_engine

    def wrong(text, *others):
        values = json.loads(text)
        ids = values["model"]["vocab"]
        ids["a"], ids["b"] = ids["b"], ids["a"]
        return right(json.dumps(values), *others)

    monkeypatch.setattr(subject, "fast_engine", wrong)
    monkeypatch.setattr(subject, "_engines", subject._engines.__wrapped__)
    made = train_tokenizer(artifact(tmp_path, CORPUS), CONFIG, Runtime(tmp_path))
    assert made.stats["parity"] is False
    assert made.stats["parity_unequal"] > 0
    assert load_encoder(made, tmp_path).engine == "tokenizers"
    root, manifest = trained
    (tmp_path / "tokenizer.json").write_bytes((root / manifest.folder / "tokenizer.json").read_bytes())
    assert load_encoder(tmp_path).engine == "tokenizers"


def test_the_ranks_give_the_same_ids_in_tiktoken(trained, encoder):
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    root, manifest = trained
    ranks = load_tiktoken_bpe(str(root / manifest.folder / "tokenizer.tiktoken"))
    words = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
    other = tiktoken.Encoding("ours", pat_str=words, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 0})
    for text in [*PHRASES, *awkward_strings()]:
        assert other.encode(text, disallowed_special=()) == encoder.encode(text).tolist()


def test_the_sample_is_proportional_and_bounded(tmp_path):
    sizes = {"s0": 0, "s1": 0, "s2": 0}
    texts = [["x" * (10 + 7 * place) for place in range(60)], ["é" * 50 for _ in range(30)]]
    paths = artifact(tmp_path, texts).files("documents", tmp_path)
    for shard in texts:
        for place, text in enumerate(shard):
            sizes[f"s{place % 3}"] += len(text.encode())
    total = sum(sizes.values())
    for wanted in (1, 100, 5000, total, 10 * total):
        sample = choose_sample(paths, wanted)
        taken = int(sample.places["size"].sum())
        assert taken == sum(sample.bytes_by_source.values())
        for source, size in sizes.items():
            share = wanted * size / total
            assert abs(sample.bytes_by_source.get(source, 0) - min(share, size)) <= 1
        again = choose_sample(paths, wanted)
        assert np.array_equal(sample.places, again.places)
        assert np.array_equal(sample.parity, again.parity)
        read = "".join(sample_texts(paths, sample.places))
        assert taken - 3 * len(sample.places) <= len(read.encode()) <= taken  # cut at whole characters


def test_letting_documents_go_early_changes_no_sample(tmp_path, monkeypatch):
    texts = [[f"{place} " * (1 + place % 40) for place in range(300)] for _ in range(3)]
    paths = artifact(tmp_path, texts).files("documents", tmp_path)
    wanted = [choose_sample(paths, size) for size in (50, 3000, 10**6)]
    monkeypatch.setattr("data_pipeline.tokens.training_sample._PRUNE", 10)
    for size, sample in zip((50, 3000, 10**6), wanted, strict=True):
        pruned = choose_sample(paths, size)
        assert np.array_equal(pruned.places, sample.places)
        assert pruned.bytes_by_source == sample.bytes_by_source
        assert pruned.documents == 900


def test_the_sample_is_read_from_the_row_groups_that_hold_it(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.documents.ROW_GROUP_BYTES", 2000)
    texts = [[f"{shard} {place} é" * (1 + place % 9) for place in range(300)] for shard in range(2)]
    paths = artifact(tmp_path, texts).files("documents", tmp_path)
    about = [pq.read_metadata(path) for path in paths]
    ends = [np.cumsum([one.row_group(group).num_rows for group in range(one.num_row_groups)]) for one in about]
    opened = []
    read = training_sample.read_groups
    monkeypatch.setattr(training_sample, "read_groups", lambda *given: opened.append(given) or read(*given))
    for size in (200, 5000, 10**6):
        places = choose_sample(paths, size).places
        whole = [texts[shard][row].encode()[:end] for _, shard, row, end in places.tolist()]
        assert list(sample_texts(paths, places, 3)) == [text[:3].decode(errors="ignore") for text in whole]
        opened.clear()
        assert list(sample_texts(paths, places)) == [text.decode(errors="ignore") for text in whole]
        holding = {(shard, int(np.searchsorted(ends[shard], row, "right"))) for _, shard, row, _ in places.tolist()}
        assert {(paths.index(path), group) for path, _, groups in opened for group in groups} == holding
        assert size > 200 or len(holding) < sum(map(len, ends))


def test_an_empty_corpus_is_reported(tmp_path):
    with pytest.raises(PipelineError, match="no documents"):
        train_tokenizer(artifact(tmp_path, [[]]), CONFIG, Runtime(tmp_path))
    with pytest.raises(PipelineError, match="no documents with text"):
        train_tokenizer(artifact(tmp_path / "b", [["", ""]]), CONFIG, Runtime(tmp_path / "b"))


def test_broken_files_are_reported(trained, tmp_path):
    root, manifest = trained
    with pytest.raises(MissingInput):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ManifestError, match="cannot be read as a tokenizer"):
        load_encoder(tmp_path)
    good = (root / manifest.folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(good[:-9])
    with pytest.raises(ManifestError, match="cannot be read as a tokenizer"):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(good)
    assert (
        load_encoder(tmp_path).encode("the quick").tolist() == load_encoder(manifest, root).encode("the quick").tolist()
    )


@pytest.mark.parametrize(
    "values",
    [
        {"special_tokens": []},
        {"special_tokens": ["a1", "a1"]},
        {"special_tokens": ["a"]},
        {"vocabulary_size": 10},
        {"vocabulary_size": 257, "special_tokens": ["a1", "b1"]},
    ],
)
def test_impossible_settings_are_reported(values):
    with pytest.raises(ConfigError):
        validate(values, TokenizerConfig, "run.toml")


def test_the_printable_alphabet_is_that_of_the_library():
    from tokenizers import pre_tokenizers

    assert sorted(alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet().values()) == list(range(256))


def taken_over(tmp_path, values, **settings):
    (tmp_path / "given").mkdir(exist_ok=True)
    (tmp_path / "given" / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    config = CONFIG.model_copy(update={"path": "given/tokenizer.json", **settings})
    return train_tokenizer(artifact(tmp_path, CORPUS), config, Runtime(tmp_path), tmp_path)


def given_values(trained):
    root, manifest = trained
    return json.loads((root / manifest.folder / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_given_tokenizer_is_taken_over_byte_for_byte(trained, encoder, tmp_path):
    """With the end-of-document token last, as GPT-2 has it, and settings that affect no id: a template, truncation."""
    values = given_values(trained)
    size = len(values["model"]["vocab"])
    names = sorted(values["model"]["vocab"], key=values["model"]["vocab"].get)
    values["model"]["vocab"] = {name: place for place, name in enumerate([*names[1:], names[0]])}
    values["added_tokens"][0]["id"] = size - 1
    values["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    manifest = taken_over(tmp_path, values)
    assert (manifest.stats["trained"], manifest.stats["parity"]) == (0, True)
    assert manifest.stats["end_of_document"] == size - 1
    assert [item.path for item in manifest.inputs if item.stage == "file"] == ["tokenizer.json"]
    assert (tmp_path / manifest.folder / "tokenizer.json").read_bytes() == json.dumps(values).encode()
    for loaded in (load_encoder(manifest, tmp_path), load_encoder(tmp_path / manifest.folder)):
        assert loaded.end_of_document == size - 1
        [ids] = loaded.encode_documents([PHRASES[0]])
        assert (ids[:-1] + 1).tolist() == encoder.encode(PHRASES[0]).tolist()
    (tmp_path / "moved").mkdir()
    (tmp_path / "given" / "tokenizer.json").rename(tmp_path / "moved" / "tokenizer.json")
    config = CONFIG.model_copy(update={"path": "moved/tokenizer.json"})
    again = train_tokenizer(artifact(tmp_path, CORPUS), config, Runtime(tmp_path, make=False), tmp_path)
    assert again.digest == manifest.digest


def test_a_given_file_that_is_not_there_is_reported(tmp_path):
    config = CONFIG.model_copy(update={"path": "nowhere"})
    with pytest.raises(MissingInput, match="nowhere"):
        train_tokenizer(artifact(tmp_path, CORPUS), config, Runtime(tmp_path), tmp_path)


def test_a_vocabulary_out_of_order_has_no_ranks(trained):
    values = given_values(trained)
    text = json.dumps(values)
    assert ranks_text(text).count(b"\n") == len(read_vocabulary(text).pieces) - 1
    ids = values["model"]["vocab"]
    last, before = sorted(ids, key=ids.get)[-2:]
    ids[last], ids[before] = ids[before], ids[last]
    assert ranks_text(json.dumps(values)) is None


def test_ids_of_a_large_vocabulary_are_wide(trained):
    """A vocabulary of 70,000: 4-byte ids, equal to the library's."""
    values = given_values(trained)
    ids = values["model"]["vocab"]
    letters = [name for name in ids if len(name) == 1]
    pairs = ((a, b) for a in letters for b in letters if a + b not in ids)
    for a, b in itertools.islice(pairs, 70_000 - len(ids)):
        ids[a + b] = len(ids)
        values["model"]["merges"].append([a, b])
    text = json.dumps(values)
    reference, vocabulary = subject.open_reference(text), read_vocabulary(text)
    run = encoding.fast_engine(definition_of_text(text), 0, encoding.library_engine(reference, 0))
    wide = encoding.Encoder(len(ids), 0, "gigatoken", vocabulary.pieces, run)
    assert wide.dtype == np.uint32
    for text in awkward_strings():
        assert wide.encode(text).tolist() == reference.encode(text).ids
        assert wide.decode(wide.encode(text)) == text

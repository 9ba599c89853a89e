"""The tokeniser: the same file every time, the same ids from both engines, the text back from the ids."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import tokenizer as subject
from data_pipeline.documents import DOCUMENT_SCHEMA, write_table
from data_pipeline.tokenizer import TokenizerConfig, choose_sample, load_encoder, segments, train_tokenizer
from governance.config import validate
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError
from governance.manifest import Manifest, describe, write_manifest
from governance.stage import Runtime

CONFIG = TokenizerConfig(vocabulary_size=600)
PHRASES = [
    "the quick brown fox isn't here. ",
    "Der schnelle Fuchs läuft über 12 Wiesen.\n",
    "def f(x):\n    return x + 1\n",
]


def artifact(root, texts_by_shard):
    outputs = []
    for number, texts in enumerate(texts_by_shard):
        rows = [
            {
                "id": f"s/f{number}#{place}", "text": text, "source": f"s{place % 3}", "url": "", "language": "en",
                "licence": "CC0-1.0", "sha256": "", "file": "f", "position": place,
            }
            for place, text in enumerate(texts)
        ]  # fmt: skip
        path = root / "redact" / ("0" * 16) / "documents" / f"{number:05}.parquet"
        write_table(path, pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA))
        outputs.append(describe(path, root))
    manifest = Manifest(
        stage="redact", version=1, key="0" * 64, config={}, inputs=(), outputs=tuple(outputs), stats={}, run={}
    )
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
    return subject._reference(root / manifest.folder / "tokenizer.json")


def test_the_stage_writes_both_files_and_its_counts(trained):
    _, manifest = trained
    assert [output.path.rpartition("/")[2] for output in manifest.outputs] == ["tokenizer.json", "tokenizer.tiktoken"]
    stats = manifest.stats
    assert stats["parity"] is True
    assert (stats["documents"], stats["sample_documents"], stats["end_of_document"]) == (42, 41, 0)
    assert stats["vocabulary_size"] <= CONFIG.vocabulary_size
    assert manifest.digest == GOLDEN, "bytes changed: raise VERSION in data_pipeline/tokenizer.py"


GOLDEN = "70c74872b75bdd319bc17bb4acc89f138d6f9df27e83f6f7bfd392c329c83d5e"


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_number_of_threads_does_not_change_a_byte(trained, threads):
    """In a process of its own: the library reads its number of threads once."""
    root, manifest = trained
    program = (
        "import json, sys; from data_pipeline.tokenizer import _train, TokenizerConfig\n"
        "texts, size = json.load(sys.stdin)\n"
        "sys.stdout.write(_train(texts, TokenizerConfig(vocabulary_size=size)).to_str())"
    )
    texts = [text for shard in CORPUS for text in shard]
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps([texts, 600]), capture_output=True, text=True, check=True,
        env={"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout == (root / manifest.folder / "tokenizer.json").read_text(encoding="utf-8")


MIXED = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [*PHRASES, "<|endoftext|>", "  ", "\n\n", "\r\n", "'s", "\u00a0", "\u2028", "\x85", "\x1c", "🙂", "٣"]
        ),
    ),
    max_size=20,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=MIXED)
def test_both_engines_agree_and_the_text_comes_back(encoder, reference, text):
    assert encoder.engine == "tiktoken"
    ids = encoder.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == reference.encode(text).ids
    assert encoder.decode(ids) == text
    assert encoder.end_of_document not in ids


def test_every_character_comes_back(encoder):
    for text in subject._every_character():
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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["word ", "\n", "  ", "x", "中", "a\u00a0", "'s"]), max_size=30), st.integers(1, 9))
def test_cutting_at_words_changes_no_id(encoder, reference, parts, limit):
    """With tiny segments: the cut stretches joined are the text, and cuts before white space keep the ids."""
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "_SEGMENT_CHARACTERS", limit)
        pieces = list(segments(text))
        assert "".join(pieces) == text
        assert all(len(piece) <= limit for piece in pieces)
        borders = itertools.pairwise(pieces)
        if all(right[0] in " \n" and not left[-1].isspace() for left, right in borders):
            assert [i for piece in pieces for i in encoder.encode(piece).tolist()] == reference.encode(text).ids


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
    for text in subject.awkward_strings():
        assert slow.encode(text).tolist() == encoder.encode(text).tolist()


def test_disagreeing_ranks_close_the_gate(trained, tmp_path):
    """Swap the ranks of two merges: tiktoken then gives other ids, the load notices and takes `tokenizers`."""
    root, manifest = trained
    for name in ("tokenizer.json", "tokenizer.tiktoken"):
        (tmp_path / name).write_bytes((root / manifest.folder / name).read_bytes())
    lines = (tmp_path / "tokenizer.tiktoken").read_bytes().splitlines()
    words = [line.split() for line in lines]
    pair = [place for place, (piece, _) in enumerate(words) if piece in (b"YQ==", b"Yg==")]  # a, b
    words[pair[0]][1], words[pair[1]][1] = words[pair[1]][1], words[pair[0]][1]
    (tmp_path / "tokenizer.tiktoken").write_bytes(b"".join(b" ".join(word) + b"\n" for word in words))
    assert load_encoder(tmp_path).engine == "tokenizers"


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
        assert sum(sample.limits.values()) == sum(sample.bytes_by_source.values())
        for source, size in sizes.items():
            share = wanted * size / total
            assert abs(sample.bytes_by_source.get(source, 0) - min(share, size)) <= 1
        assert sample == choose_sample(paths, wanted)


def test_an_empty_corpus_is_told(tmp_path):
    with pytest.raises(PipelineError, match="no documents"):
        train_tokenizer(artifact(tmp_path, [[]]), CONFIG, Runtime(tmp_path))
    with pytest.raises(PipelineError, match="no documents with text"):
        train_tokenizer(artifact(tmp_path / "b", [["", ""]]), CONFIG, Runtime(tmp_path / "b"))


def test_broken_files_are_told(trained, tmp_path):
    root, manifest = trained
    with pytest.raises(MissingInput):
        load_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ManifestError, match="no tokeniser"):
        load_encoder(tmp_path)
    good = (root / manifest.folder / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(good)
    (tmp_path / "tokenizer.tiktoken").write_bytes(b"not a rank file")
    with pytest.raises(ManifestError, match="no tiktoken file"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        {"special_tokens": []},
        {"special_tokens": ["a", "a"]},
        {"vocabulary_size": 10},
        {"vocabulary_size": 257, "special_tokens": ["a", "b"]},
    ],
)
def test_impossible_settings_are_told(values):
    with pytest.raises(ConfigError):
        validate(values, TokenizerConfig, "run.toml")


def test_the_printable_alphabet_is_that_of_the_library():
    from tokenizers import pre_tokenizers

    assert sorted(subject._alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(subject._alphabet().values()) == list(range(256))

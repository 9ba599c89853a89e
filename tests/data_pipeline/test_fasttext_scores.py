"""Scores of any fastText model are the library's: every loss, dimension and n-gram, quantised or not."""

import struct
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipeline.kernels.fasttext_file import HIERARCHICAL, NEGATIVE_SAMPLING, ONE_VS_ALL, SOFTMAX
from data_pipeline.kernels.fasttext_scores import load_classifier, score_labels
from governance.errors import ManifestError
from governance.kernels.buffers import text_buffers

fasttext = pytest.importorskip("fasttext", reason="needs fasttext-predict, of the extra `dev`")

WORDS = ["</s>", "the", "cat", "sat", "on", "a", "mat", "über", "猫", "dog's", "x" * 70, "__lab", "été"]
MODELS = {
    "softmax": {},
    "wide": {"dimensions": 100, "word_grams": 2, "buckets": 5000},
    "trigrams": {"dimensions": 7, "word_grams": 3, "buckets": 997, "shortest": 2, "longest": 5},
    "one_vs_all": {"loss": ONE_VS_ALL, "labels": 5, "word_grams": 2, "buckets": 300},
    "negative_sampling": {"loss": NEGATIVE_SAMPLING, "labels": 3},
    "hierarchical": {"loss": HIERARCHICAL, "labels": 9, "shortest": 3, "longest": 3, "buckets": 400},
    "languages": {"dimensions": 33, "labels": 40, "shortest": 2, "longest": 4, "buckets": 2000},
    "quantised": {"quantised": True, "dimensions": 10, "word_grams": 2, "buckets": 500},
    "quantised_with_norm": {
        "quantised": True,
        "norm": True,
        "dimensions": 9,
        "shortest": 1,
        "longest": 2,
        "buckets": 50,
    },
    "pruned": {"quantised": True, "pruned": 20, "word_grams": 2, "buckets": 64, "shortest": 2, "longest": 3},
    "all_pruned": {"quantised": True, "pruned": 0, "word_grams": 2, "buckets": 64},
    "output_quantised": {"quantised": True, "output_quantised": True, "dimensions": 8, "labels": 300},
}


def model_bytes(
    dimensions=16, labels=2, word_grams=1, buckets=0, shortest=0, longest=0, loss=SOFTMAX, quantised=False, norm=False,
    pruned=-1, output_quantised=False, kind=3, version=12,
):  # fmt: skip
    """A model file with random weights, as the library writes it."""
    draw = np.random.default_rng(dimensions + 7 * labels + 31 * buckets)
    head = [793712314, version, dimensions, 5, 5, 1, 5, word_grams, loss, kind, buckets, shortest, longest, 100]
    names = [*WORDS, *(f"__label__l{number}" for number in range(labels))]
    counts = [*range(500, 500 - len(WORDS), -1), *range(labels * 3, 0, -3)]
    out = struct.pack("<14id", *head, 1e-4) + struct.pack("<3i2q", len(names), len(WORDS), labels, 900, pruned)
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        out += name.encode() + b"\0" + struct.pack("<qb", count, number >= len(WORDS))
    kept = draw.permutation(buckets)[: max(0, pruned)]
    for row, bucket in enumerate(kept):
        out += struct.pack("<2i", bucket, row)
    rows = len(WORDS) + (buckets if pruned < 0 else pruned)
    out += struct.pack("<?", quantised) + (
        quantised_matrix(draw, rows, dimensions, norm) if quantised else matrix(draw, rows, dimensions)
    )
    out += struct.pack("<?", output_quantised)
    return out + (
        quantised_matrix(draw, labels, dimensions, False) if output_quantised else matrix(draw, labels, dimensions)
    )


def matrix(draw, rows, columns):
    return struct.pack("<qq", rows, columns) + draw.normal(size=(rows, columns)).astype("<f4").tobytes()


def quantiser(draw, dimensions, width):
    parts = -(-dimensions // width)
    last = dimensions - (parts - 1) * width
    centroids = draw.normal(size=dimensions * 256).astype("<f4")
    return parts, struct.pack("<4i", dimensions, parts, width, last) + centroids.tobytes()


def quantised_matrix(draw, rows, columns, norm):
    parts, codebook = quantiser(draw, columns, 2)
    codes = draw.integers(0, 256, rows * parts).astype("u1").tobytes()
    out = struct.pack("<?qqi", norm, rows, columns, rows * parts) + codes + codebook
    return out + (draw.integers(0, 256, rows).astype("u1").tobytes() + quantiser(draw, 1, 1)[1] if norm else b"")


@pytest.fixture(scope="module", params=MODELS)
def engines(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("fasttext") / "model.bin"
    path.write_bytes(model_bytes(**MODELS[request.param]))
    return load_classifier(path), fasttext.load_model(str(path))


PIECES = st.one_of(
    st.sampled_from([*WORDS, "unknown", "mat,", "__label__l0", "__label__", "the\x00cat", "é", "\u3000", "日本"]),
    st.text(max_size=6),
)
TEXT = st.tuples(st.lists(PIECES, max_size=30), st.sampled_from([" ", "  ", "\n", "\t", "\r\n"])).map(
    lambda drawn: drawn[1].join(drawn[0])
)


@settings(max_examples=60)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
@example(texts=["on mat été"])  # with negative sampling it is at a step of the table of the sigmoid
def test_the_probabilities_are_those_of_the_library(engines, texts):
    ours, theirs = engines
    data, offsets = text_buffers(pa.array(texts, pa.large_string()))
    found = score_labels(data, offsets, ours, range(len(ours.labels)))
    for text, scores in zip(texts, found, strict=True):
        labels, probabilities = theirs.predict(text.replace("\n", " "), k=len(ours.labels))
        expected = dict(zip(labels, probabilities, strict=True))
        expected = [expected.get(f"__label__{label}", 0.0) for label in ours.labels]
        np.testing.assert_allclose(scores, expected, atol=1e-6, rtol=1e-6)


def test_long_texts_and_chosen_labels(engines):
    ours, theirs = engines
    text = " ".join(f"{word}{number % 3 or ''}" for number in range(400) for word in WORDS[1:])
    data, offsets = text_buffers(pa.array([text, text[:1000]], pa.large_string()))
    chosen = [len(ours.labels) - 1, 0]
    found = score_labels(data, offsets, ours, chosen)
    labels, probabilities = theirs.predict(text, k=len(ours.labels))
    expected = dict(zip(labels, probabilities, strict=True))
    np.testing.assert_allclose(found[0], [expected.get(f"__label__{ours.labels[at]}", 0) for at in chosen], atol=1e-6)
    assert replace(ours).labels == ours.labels


GOOD = model_bytes(word_grams=2, buckets=100)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut short, or not a fastText model"),
        (b"PK\x03\x04" + GOOD[4:], "not a fastText model of version 11 or 12"),
        (GOOD[:4] + b"\x0d" + GOOD[5:], "not a fastText model of version 11 or 12"),
        (model_bytes(kind=2), "holds word vectors, not a classifier"),
        *((GOOD[: len(GOOD) * part // 8], "cut short") for part in range(1, 8)),
    ],
)
def test_files_that_cannot_be_used_are_reported(tmp_path, data, words):
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(ManifestError, match=words) as caught:
        load_classifier(path)
    assert "model.bin" in str(caught.value)


def changed(at, kind, value, **shape):
    """A model with one number of its file replaced."""
    data = bytearray(model_bytes(**{"word_grams": 2, "buckets": 100, **shape}))
    struct.pack_into(f"<{kind}", data, at % len(data), value)
    return bytes(data)


PRUNED = MODELS["pruned"]
KEPT = model_bytes(**PRUNED).index(b"__label__l1\0") + len("__label__l1\0") + 9  # where the pairs of buckets begin


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed(40, "i", 1 << 27), "rows for 13 words and 134217728 buckets"),
        (changed(40, "i", 0), "rows for 13 words and 0 buckets"),
        (changed(40, "i", -5), "-5 buckets"),
        (changed(40, "i", 0, **PRUNED), "0 buckets"),
        (changed(40, "i", 2**31 - 1, **PRUNED), "2147483647 buckets"),
        (changed(28, "i", 1 << 30), "1073741824 words"),
        (changed(48, "i", 5, buckets=0, word_grams=1), "rows for 13 words and 0 buckets"),
        (changed(8, "i", 1 << 30), "1073741824 dimensions"),
        (changed(68, "i", -1), "entries for -1 words"),
        (changed(84, "q", 1 << 62), "cut short"),
        (changed(KEPT, "i", 64, **PRUNED), "an n-gram that pruning kept"),
        (changed(KEPT, "i", -1, **PRUNED), "an n-gram that pruning kept"),
        (changed(KEPT + 4, "i", 20, **PRUNED), "an n-gram that pruning kept"),
        (changed(KEPT + 4, "i", -1, **PRUNED), "an n-gram that pruning kept"),
        (changed(-4, "f", float("nan")), "not a finite number"),
        (changed(-4, "f", float("inf"), loss=ONE_VS_ALL), "not a finite number"),
        (changed(-4 - 4 * 16 * 2 - 17, "f", float("nan")), "not a finite number"),
        (changed(GOOD.index(b"__label__l0\0") + 12, "q", 1 << 60, loss=HIERARCHICAL), "count of a label"),
    ],
)
def test_a_damaged_number_is_reported(tmp_path, data, words):
    test_files_that_cannot_be_used_are_reported(tmp_path, data, words)


@settings(max_examples=300)
@given(
    shape=st.sampled_from([MODELS[name] for name in ("trigrams", "pruned", "quantised_with_norm", "hierarchical")]),
    at=st.integers(0, 1 << 16),
    value=st.sampled_from([-(1 << 31), -1, 0, 1, 2, 255, 1 << 20, (1 << 31) - 1]),
)
def test_any_damaged_number_is_reported_or_harmless(tmp_path_factory, shape, at, value):
    """Read and score in the process of the test: a wrong place in memory would end it."""
    path = tmp_path_factory.mktemp("damaged") / "model.bin"
    good = model_bytes(**shape)
    path.write_bytes(changed(at % min(len(good) - 4, 1500), "i", value, **shape))
    try:
        model = load_classifier(path)
    except ManifestError:
        return
    found = score_labels(*text_buffers(pa.array(["the cat sat", "", "ü unknown"])), model, range(len(model.labels)))
    assert found.shape == (3, len(model.labels))


@pytest.mark.parametrize("loss", [SOFTMAX, ONE_VS_ALL, HIERARCHICAL])
def test_a_score_that_overflows_is_not_a_number(tmp_path, loss):
    """A number too large for float32 never becomes a probability."""
    path = tmp_path / "model.bin"
    path.write_bytes(model_bytes(loss=loss))
    model = load_classifier(path)
    large = np.full_like(model.rows, 3e38)
    large[:, ::2] *= -1
    model = replace(model, rows=large, output=np.full_like(model.output, 3e38))
    with np.errstate(all="ignore"):
        found = score_labels(*text_buffers(pa.array(["the cat sat on a mat"])), model, [0, 1])
    assert np.isnan(found).all()

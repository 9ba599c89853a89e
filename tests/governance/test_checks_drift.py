"""Drift: histograms that add up, distances against plain numpy, a reference that cannot be altered."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.checks.drift import (
    ALL,
    bins_of,
    distances,
    drift_rows,
    merge_sketches,
    read_reference,
    sketch_of,
    write_reference,
)
from governance.config import canonical_json
from governance.errors import ConfigError, ManifestError
from governance.signing.dsse import create_job_key, create_key, private_key, public_key, public_path
from tests.manifests import manifest_of

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(values=st.lists(NUMBERS, min_size=2, max_size=30))
def test_bins_rise_with_the_numbers_and_are_narrow(values):
    numbers = np.sort(np.array(values, np.float64))
    bins = bins_of(numbers)
    assert (np.diff(bins) >= 0).all()
    assert (bins_of(-numbers) == -bins).all()
    normal = np.abs(numbers) >= np.finfo(np.float64).tiny
    for one, other in pairwise(numbers[normal]):
        if bins_of(np.array([one]))[0] == bins_of(np.array([other]))[0]:
            assert abs(other - one) <= min(abs(one), abs(other)) / 32


def test_zeros_are_one_bin():
    assert bins_of(np.array([0.0, -0.0])).tolist() == [0, 0]


def table(values, languages=None, kept=None, **more):
    columns = {"words": pa.array(values, pa.float64()), "language": languages or ["en"] * len(values), **more}
    return pa.table({**columns, "kept": kept or [True] * len(values)})


def test_a_sketch_counts_kept_rows_by_language_and_what_is_missing():
    rows = table([1.0, 2.0, None, math.inf, 5.0], ["en", "de", "en", None, "en"], [True] * 4 + [False], text=["x"] * 5)
    sketch = sketch_of(rows)
    assert list(sketch) == ["words"]
    found = {name: (sum(part["counts"]), part["missing"]) for name, part in sketch["words"].items()}
    assert found == {"en": (1, 1), "de": (1, 0), "und": (0, 1)}


def test_an_empty_text_and_a_null_are_one_language():
    sketch = sketch_of(table([1.0, 1.0, 2.0], ["", None, "und"]))
    assert {name: sum(part["counts"]) for name, part in sketch["words"].items()} == {"und": 3}


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 40), max_size=4))
@settings(max_examples=30)
def test_sketches_of_any_parts_in_any_order_are_the_sketch_of_the_whole(seed, cuts):
    chance = random.Random(seed)
    values = [chance.choice([None, chance.gauss(0, 10), float(chance.randrange(3))]) for _ in range(40)]
    whole = table(values, [chance.choice(["en", "de"]) for _ in values])
    bounds = [0, *sorted(cuts), 40]
    parts = [sketch_of(whole.slice(a, b - a)) for a, b in pairwise(bounds)]
    chance.shuffle(parts)
    assert canonical_json(merge_sketches(parts)) == canonical_json(merge_sketches([sketch_of(whole)]))


def histogram(values):
    return sketch_of(table(list(values)))["words"]["en"]


def plain(a, e):
    """The two distances from the numbers themselves: every bin is one number, so nothing is joined by a bin."""
    points = np.union1d(a, e)
    cumulative = [np.searchsorted(np.sort(part), points, side="right") / len(part) for part in (a, e)]
    ranks = [(np.sum(e < x) + np.sum(e <= x)) / (2 * len(e)) for x in points]
    groups = {x: min(int(rank * 10 + 1e-12), 9) for x, rank in zip(points, ranks, strict=True)}
    names = sorted(set(groups.values()))
    p, q = (
        np.array([sum(groups[x] == name for x in part) + 0.5 for name in names]) / (len(part) + len(names) / 2)
        for part in (a, e)
    )
    return float(((p - q) * np.log(p / q)).sum()), float(np.abs(cumulative[0] - cumulative[1]).max())


@given(a=st.lists(st.integers(0, 31), min_size=1, max_size=60), e=st.lists(st.integers(0, 31), min_size=1, max_size=60))
@settings(max_examples=100)
def test_the_distances_are_those_of_their_definitions(a, e):
    found = distances(histogram(map(float, a)), histogram(map(float, e)))
    assert found == pytest.approx(plain(np.array(a, float), np.array(e, float)), abs=1e-8)


def test_the_same_corpus_has_no_drift_and_another_draw_little():
    chance = np.random.default_rng(4)
    first, second = chance.lognormal(5, 1, 5000), chance.lognormal(5, 1, 5000)
    assert distances(histogram(first), histogram(first)) == (0.0, 0.0)
    psi, ks = distances(histogram(first), histogram(second))
    assert psi < 0.02
    assert ks < 0.04
    shifted, far = distances(histogram(first * 1.5), histogram(first))
    assert shifted > 0.1
    assert far == pytest.approx(0.16, abs=0.02)  # of two lognormals: 2 Phi(ln(1.5) / 2) - 1 = 0.1607


def test_the_distance_is_within_a_bin_of_the_true_one():
    chance = np.random.default_rng(5)
    a, e = np.sort(chance.normal(3, 1, 800)), np.sort(chance.normal(3.3, 1.2, 900))
    points = np.concatenate([a, e])
    true = np.abs(np.searchsorted(a, points, "right") / 800 - np.searchsorted(e, points, "right") / 900).max()
    ours, theirs = histogram(a), histogram(e)
    widest = max(max(ours["counts"]) / 800, max(theirs["counts"]) / 900)
    found = distances(ours, theirs)[1]
    assert true - widest <= found <= true + 1e-9


def test_rows_by_feature_and_language_with_the_new_and_the_gone():
    ours = sketch_of(table([float(n) for n in range(60)], ["en"] * 50 + ["fr"] * 10))
    theirs = sketch_of(table([float(n) for n in range(60)], ["en"] * 50 + ["de"] * 10))
    rows = {row["language"]: row for row in drift_rows(ours, theirs, 20)}
    assert sorted(rows) == [ALL, "de", "en", "fr"]
    assert (rows["en"]["psi"], rows["en"]["ks"], rows["en"]["n"], rows["en"]["reference_n"]) == (0.0, 0.0, 50, 50)
    assert (rows[ALL]["psi"], rows[ALL]["n"]) == (0.0, 60)
    assert (rows["fr"]["psi"], rows["fr"]["n"], rows["fr"]["reference_n"]) == (None, 10, 0)
    assert (rows["de"]["psi"], rows["de"]["n"], rows["de"]["missing_share"]) == (None, 0, None)


# --- the reference


@pytest.fixture
def signed(tmp_path):
    create_key(tmp_path / "key.pem")
    tokens, clean = (manifest_of(s) for s in ("encode", "clean"))
    path = tmp_path / "reference.json"
    write_reference(path, sketch_of(table([1.0, 2.0])), tokens, clean, private_key(tmp_path / "key.pem"))
    return path, public_key(public_path(tmp_path / "key.pem"))


def test_a_reference_comes_back(signed):
    path, key = signed
    assert read_reference(path, [key]) == sketch_of(table([1.0, 2.0]))


def test_the_key_of_a_job_signs_one_too(tmp_path):
    root, job, path = tmp_path / "root.pem", tmp_path / "job.pem", tmp_path / "reference.json"
    create_key(root)
    create_job_key(job, private_key(root), "nightly", 1)
    sketch, made = sketch_of(table([1.0, 2.0])), [manifest_of(s) for s in ("encode", "clean")]
    write_reference(path, sketch, *made, private_key(job))
    assert read_reference(path, [public_key(public_path(root))]) == sketch
    (tmp_path / "old").mkdir()
    create_job_key(tmp_path / "old" / "job.pem", private_key(root), "nightly", -1)
    with pytest.raises(ConfigError, match="the certificate of the key 'nightly' holds"):
        write_reference(tmp_path / "other.json", sketch, *made, private_key(tmp_path / "old" / "job.pem"))
    assert not (tmp_path / "other.json").exists()


def test_nobody_else_signs_one_and_nobody_alters_one(signed, tmp_path):
    path, key = signed
    create_key(tmp_path / "other.pem")
    with pytest.raises(ManifestError, match="no trusted key"):
        read_reference(path, [private_key(tmp_path / "other.pem").public_key()])
    with pytest.raises(ManifestError, match="no trusted key"):
        read_reference(path, [])
    envelope = json.loads(path.read_bytes())
    payload = envelope["payload"]
    envelope["payload"] = payload[:40] + ("A" if payload[40] != "A" else "B") + payload[41:]
    path.write_text(json.dumps(envelope))
    with pytest.raises(ManifestError):
        read_reference(path, [key])


def test_a_verdict_is_no_reference(signed, tmp_path):
    from governance.files import write_json
    from governance.signing.dsse import sign, statement

    write_json(tmp_path / "v.json", sign(statement({}, "urn:assay:verdict:1", {}), private_key(tmp_path / "key.pem")))
    with pytest.raises(ManifestError, match="not a reference"):
        read_reference(tmp_path / "v.json", [signed[1]])

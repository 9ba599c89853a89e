"""Drift suite: distance of document statistics from a frozen reference.

A *sketch* is a histogram of integer counts, by feature and language, over bins independent of the data: a bin holds the
numbers with equal IEEE 754 exponent and first five bits of the fraction, so that its width is at most 1/32 of its lower
end (as in DDSketch: Masson, Rim and Lee 2019, arXiv:1908.10693; here without a logarithm, hence equal on every
machine). Sketches of shards add up in any order. Let a_b and e_b be the counts of the corpus and of
the reference.

    psi   population stability index (Siddiqi 2006, *Credit Risk Scorecards*; its distribution: Yurdakul and Naranjo
          2020, J. Risk Model Validation 14(4)): the bins are joined to at most ten groups of about a tenth of the
          reference each; with p = (a + 1/2) / (n_a + G/2) and q the same of e, over G groups,
          psi = sum (p - q) ln(p / q)
    ks    two-sample Kolmogorov-Smirnov distance (Smirnov 1948): the greatest |A(x) - E(x)| of the distribution
          functions at the ends of bins; at most the true distance, and short of it by no more than the mass of one bin

Under no drift the expected psi is about (G - 1)(1/n_a + 1/n_e): 0.036 for 500 documents on either side, so numbers of
fewer documents than `[audit] min_drift_documents` are missing. Rules of thumb for psi: below 0.1 none, above 0.25
much.

A reference is a signed file (`assay governance freeze`): an in-toto statement about its corpus. Price: 0.15 s per
feature shard of 100,000 documents and 35 features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from governance.errors import ManifestError, MissingInput
from governance.files import write_json
from governance.manifest import Manifest
from governance.signing.dsse import open_envelope, refuse_expired, sign, statement
from governance.stage import now

PREDICATE_TYPE = "urn:assay:drift-reference:1"
ALL = "(all)"
GROUPS = 10
COLUMNS = (
    "feature", "language", "psi", "ks", "n", "reference_n", "missing_share", "reference_missing_share",
)  # fmt: skip
_FRACTION_BITS = 5
_SHIFT = 52 - _FRACTION_BITS
_SPAN = 1 << 18  # more than there are bins

Sketch = dict[str, dict[str, dict[str, Any]]]
"""feature -> language -> {"bins": ascending bins, "counts": of each, "missing": documents without a value}."""


def bins_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bin of each finite number.

    Bins rise with the numbers, and the bin of 0 is 0.
    """
    magnitude = np.abs(values).view(np.int64) >> _SHIFT
    return np.where(values < 0, -magnitude, magnitude)


def sketch_of(table: pa.Table) -> Sketch:
    """The sketch of the kept rows of a feature shard.

    Holds a histogram of each numeric column for each `language`.

    Args:
        table: the columns of a feature shard, `kept` among them; numbers that are not finite count as missing.
    """
    kept = table.filter(table["kept"]) if "kept" in table.column_names else table
    if not kept.num_rows:
        return {}
    encoded = kept["language"].fill_null("").combine_chunks().dictionary_encode()
    names = [name or "und" for name in encoded.dictionary.to_pylist()]
    languages = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    sketch: Sketch = {}
    for field in kept.schema:
        number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_boolean(field.type)
        if number and field.name != "kept":
            sketch[field.name] = _by_language(_numbers(kept[field.name]), languages, names)
    return sketch


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values = column.cast(pa.float64()).to_numpy()
    return np.where(np.isfinite(values), values, np.nan)


def _by_language(
    values: npt.NDArray[np.float64], languages: npt.NDArray[np.int64], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    there = ~np.isnan(values)
    keys, counts = np.unique(languages[there] * 2 * _SPAN + bins_of(values[there]) + _SPAN, return_counts=True)
    missing = np.bincount(languages[~there], minlength=len(names))
    places, bins = keys // (2 * _SPAN), keys % (2 * _SPAN) - _SPAN
    found: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        own = places == place
        part = {"bins": bins[own].tolist(), "counts": counts[own].tolist(), "missing": int(missing[place])}
        found[name] = merge([found[name], part]) if name in found else part
    return found


def merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Histograms of one feature added up."""
    total: dict[int, int] = {}
    missing = 0
    for part in parts:
        missing += part["missing"]
        for place, count in zip(part["bins"], part["counts"], strict=True):
            total[place] = total.get(place, 0) + count
    bins = sorted(total)
    return {"bins": bins, "counts": [total[place] for place in bins], "missing": missing}


def merge_sketches(sketches: Iterable[Sketch]) -> Sketch:
    """Sketches of shards added up; the same in any order."""
    gathered: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for sketch in sketches:
        for feature, languages in sketch.items():
            for language, part in languages.items():
                gathered.setdefault(feature, {}).setdefault(language, []).append(part)
    return {
        feature: {language: merge(parts) for language, parts in sorted(languages.items())}
        for feature, languages in sorted(gathered.items())
    }


def drift_rows(corpus: Sketch, reference: Sketch, min_documents: int) -> list[dict[str, Any]]:
    """Drift rows by feature and language, with "(all)"; see the module.

    `n` and `reference_n` are documents with a value. `psi` and `ks` are None where either is below `min_documents`: a
    new or removed feature or language has a row without numbers.
    """
    rows = []
    for feature in sorted({*corpus, *reference}):
        ours, theirs = (
            {**part, ALL: merge(part.values())} for part in (corpus.get(feature, {}), reference.get(feature, {}))
        )
        for language in sorted({*ours, *theirs}):
            a, e = (part.get(language, {"bins": [], "counts": [], "missing": 0}) for part in (ours, theirs))
            n, m = sum(a["counts"]), sum(e["counts"])
            enough = min(n, m) >= max(1, min_documents)
            psi, ks = distances(a, e) if enough else (None, None)
            rows.append(
                {
                    "feature": feature,
                    "language": language,
                    "psi": psi,
                    "ks": ks,
                    "n": n,
                    "reference_n": m,
                    "missing_share": _share(a["missing"], n),
                    "reference_missing_share": _share(e["missing"], m),
                }
            )
    return rows


def _share(missing: int, values: int) -> float | None:
    return round(missing / (missing + values), 9) if missing + values else None


def distances(corpus: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float]:
    """PSI and Kolmogorov-Smirnov distance of two non-empty histograms."""
    bins = np.union1d(corpus["bins"], reference["bins"]).astype(np.int64)
    a, e = (_on(bins, part) for part in (corpus, reference))
    n, m = int(a.sum()), int(e.sum())
    ks = float(np.abs(np.cumsum(a) * m - np.cumsum(e) * n).max()) / (n * m)
    # A bin goes to the group of its middle rank in the reference; one that the reference lacks, to that of its place.
    middle = 2 * np.cumsum(e) - e
    group = np.unique(np.minimum(middle * GROUPS // (2 * m), GROUPS - 1), return_inverse=True)[1]
    groups = int(group.max()) + 1
    p, q = ((np.bincount(group, part, groups) + 0.5) / (total + groups / 2) for part, total in ((a, n), (e, m)))
    psi = math.fsum(((p - q) * np.log(p / q)).tolist())
    return round(psi, 9), round(ks, 9)


def _on(bins: npt.NDArray[np.int64], part: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    counts = np.zeros(len(bins), np.int64)
    counts[np.searchsorted(bins, part["bins"])] = part["counts"]
    return counts


def write_reference(path: Path, sketch: Sketch, tokens: Manifest, clean: Manifest, key: Any) -> None:
    """Sign a corpus' sketch and write it.

    It states its time, without which the certificate of a job's key covers no signature.

    Args:
        path: file to write.
        sketch: of the kept rows of `clean`.
        tokens: the encoded corpus that passed the gate, subject of the statement.
        clean: the artifact whose features were sketched.
        key: Ed25519 private key of the signer.

    Raises:
        ConfigError: the certificate of the key does not hold now.
    """
    refuse_expired(key, moment := now())
    predicate = {"clean": {"path": clean.path, "digest": clean.digest}, "sketch": sketch, "signed_at": moment}
    write_json(path, sign(statement({tokens.path: tokens.digest}, PREDICATE_TYPE, predicate), key))


def read_reference(path: Path, trusted: Iterable[Any]) -> Sketch:
    """Read a reference sketch signed by a trusted Ed25519 key.

    Raises:
        MissingInput: the file does not exist.
        ManifestError: it was altered, is not a reference, or no trusted key signed it.
    """
    if not path.exists():
        raise MissingInput(f"audit.reference: {path}: no such file. Make one: assay governance freeze CONFIG FILE")
    content, _ = open_envelope(path, trusted)
    if content.get("predicateType") != PREDICATE_TYPE:
        raise ManifestError(f"{path}: is a {content.get('predicateType')!r}, not a reference for the suite drift")
    sketch: Sketch = content["predicate"]["sketch"]
    return sketch

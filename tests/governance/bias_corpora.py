"""Whole synthetic corpora as count tables, with their planted effects as a value."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.governance.bias_counts import Domains, per_bucket, table_of

GROUPS = ("a", "b", "c")
CATEGORIES = ("crime", "science", "family")
RATES = {"a": 0.2, "b": 0.1, "c": 0.05}
CATEGORY_RATE = 0.05
ABUSE = 0.03
KEEP = 0.85


@dataclass(frozen=True)
class Planted:
    """Effects: a null corpus has none."""

    association: dict = field(default_factory=dict)
    """(group, category) -> how many times as often."""
    tone: dict = field(default_factory=dict)
    """group -> points added to a sentence's mean score."""
    abuse: dict = field(default_factory=dict)
    """group -> how many times as often a sentence has a listed word."""
    keep: dict = field(default_factory=dict)
    """group -> factor on the rate at which `dedup` keeps documents."""


def corpus(seed, planted=None, **shape):
    """All count tables of one language and one axis; a sentence mentions one group or none."""
    planted = planted or Planted()
    d = Domains(seed, **shape)
    rows = {name: [] for name in ("documents", "axes", "groups", "categories", "pairs", "scores", "fates", "shares")}
    sentences = d.sizes * 8
    mentioning = {group: d.draw(d.sizes, rate) for group, rate in RATES.items()}
    docs = np.maximum(d.sizes, sum(mentioning.values()))
    spoken = {group: number * 3 for group, number in mentioning.items()}
    sentences = np.maximum(sentences, sum(spoken.values()))
    nobody = sentences - sum(spoken.values())
    rows["documents"] += per_bucket(
        "documents",
        ("en", "web", None),
        d.into(docs),
        d.into(sentences * 15),
        d.into(sentences),
        d.into(sentences * 90),
    )
    rows["axes"] += per_bucket("axes", ("en", None, "x"), d.into(sum(mentioning.values())))
    for group in GROUPS:
        n = d.into(mentioning[group])
        rows["groups"] += per_bucket("groups", ("en", "web", None, "x", group), n, n * 4, d.into(spoken[group]))
    _categories(d, rows, spoken, nobody, planted)
    _scores(d, rows, spoken, nobody, planted)
    _fates(d, rows, mentioning, docs, planted)
    for value, part in zip(("s", "t"), _split(d, docs), strict=True):
        rows["shares"] += per_bucket("shares", ("source", value, None), d.into(part), d.into(part) * 90, d.into(part))
    return {name: table_of(name, of) for name, of in rows.items()}


def _split(d, docs):
    one = d.draw(docs, 0.3, 0.3)
    return one, docs - one


def _categories(d, rows, spoken, nobody, planted):
    for category in CATEGORIES:
        rates = d.rates(CATEGORY_RATE)
        total = d.draw(nobody, rates)
        for group in GROUPS:
            both = d.draw(spoken[group], rates * planted.association.get((group, category), 1.0))
            rows["pairs"] += per_bucket("pairs", ("en", "web", None, "x", group, "topic", category), d.into(both))
            total = total + both
        rows["categories"] += per_bucket("categories", ("en", "web", None, "topic", category), d.into(total))


def _scores(d, rows, spoken, nobody, planted):
    mood, abuse = d.rng.normal(0.1, 0.2, len(nobody)), d.rates(ABUSE)
    for axis, group, n in (("", "", nobody), *(("x", group, spoken[group]) for group in GROUPS)):
        mean = mood + planted.tone.get(group, 0.0)
        total = np.rint(d.rng.normal(n * mean, np.sqrt(n)))
        hits = d.draw(n, abuse * planted.abuse.get(group, 1.0))
        key = ("en", "web", None, axis, group)
        rows["scores"] += per_bucket("scores", (*key, "sentiment"), d.into(n), d.into(total), d.into(n), d.into(n))
        rows["scores"] += per_bucket("scores", (*key, "toxicity"), d.into(n), d.into(hits), d.into(hits), d.into(hits))


def _fates(d, rows, mentioning, docs, planted):
    clean, dedup = d.rates(0.95), d.rates(KEEP)
    lengths = d.rng.integers(6, 10, len(docs))
    rest = docs - sum(mentioning.values())
    for group, n in (("", rest), *mentioning.items()):
        passed = d.draw(n, clean)
        kept = d.draw(passed, dedup * planted.keep.get(group, 1.0))
        for stage, reason, ended in (
            ("clean", "short", n - passed), ("dedup", "near", passed - kept), ("kept", "", kept)
        ):  # fmt: skip
            for length in range(6, 10):
                key = (stage, reason, "web", "", "en", length, None, "x", group)
                rows["fates"] += per_bucket("fates", key, d.into(np.where(lengths == length, ended, 0)))


def simpson(seed):
    """A group that occurs mostly in long documents, of which few are kept, whichever group they mention."""
    rng = np.random.default_rng(seed)
    rows = []
    for length, rate, sizes in ((5, 0.9, {"a": 60, "": 400}), (12, 0.3, {"a": 140, "": 100})):
        for bucket in range(64):
            for group, number in sizes.items():
                n = rng.poisson(number)
                kept = rng.binomial(n, rate)
                rows.append(("kept", "", "web", "", "en", length, bucket, "x", group, kept))
                rows.append(("clean", "long", "web", "", "en", length, bucket, "x", group, n - kept))
    return table_of("fates", rows)

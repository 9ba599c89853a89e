"""Intervals and alarms of the bias audit over simulated corpora: coverage, false alarms, power.

A corpus is drawn as the count tables that the audit makes of texts: sites of log-normal sizes, in 64 buckets, whose
documents resemble each other (beta rates, intra-class correlation 0.05). `tests/governance/test_bias_counts.py` shows
once that counting texts gives the tables' sums; what is measured here is what is made of them. Three groups are
common, 28 nationalities rare: about 2 to 17 sentences each, of which 6 % (as in real text) or 40 % hold a word of
praise or blame. Without planted effects every gap is 0 and every ratio 1. The "crossed" shapes hold 16 intersections
of 15 to 120 sentences, half of them about the edge of 30 sentences from which the suite `intersections` has rows.

Coverage counts rows that have an interval; "too few to say" has none, and the note has how many rows had one, and the
standard error of the coverage. Rows of one corpus share its sites, so that is the error of a ratio of sums over corpora
(Cochran 1977, "Sampling Techniques", 2.11), some 1.5 times the binomial's. A coverage falls short where it is outside
.93 to .97; quick, by more than two standard errors, since 30 corpora cannot resolve less. Few sites have an error so
large that 300 corpora do not either, so they are drawn oftener. Not every metric has an interval: premium, tokens per
byte and personal data per million tokens count every token, and coverage of the lists has bounds that hold always. A
corpus raises an alarm in a suite when a row has q < .05. Power counts corpora in which the planted row has q < .05 and
an interval that leaves out no difference; the reference are the intervals that the audit had before (jackknife alone),
on the same seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.measures.goals import Goal, figure

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COMMON = {"a": 0.2, "b": 0.1, "c": 0.05}
CATEGORIES = ("crime", "science", "family")
CROSSED = "ethnicity x gender"
SUITES = ("association", "tone", "impact", "intersections")
NULLS = {
    "npmi": 0.0, "npmi_gap": 0.0, "sentiment_gap": 0.0, "toxicity_ratio": 1.0, "keep_ratio_adjusted": 1.0,
    "keep_ratio": 1.0,
}  # fmt: skip
LEVEL = 0.05
MIN_INTERVALS = 100
"""With fewer intervals a coverage is only reported."""
LEANINGS = {"a": 3.0, "b": 1 / 3, "category": 3.0, "praise": 0.6, "abuse": 4.0, "kept": 0.8}
"""The second source's rates over the first's."""
_OF_ONE_SOURCE = ("npmi", "share", "axis_share", "per_million_words", "keep_ratio")
"""Metrics that describe the whole corpus: their truth is not known where sources differ."""
_LIKENESS = 0.05
_CATEGORY, _ABUSE, _PRAISE, _CLEAN, _DEDUP = 0.05, 0.03, 0.6, 0.95, 0.85


@dataclass(frozen=True)
class Shape:
    """The shape of a simulated corpus."""

    sites: int = 400
    documents: float = 20.0
    """Documents per site, on average."""
    sigma: float = 1.0
    """Spread of the sites' sizes, on the log scale."""
    rare: int = 0
    """Nationalities with 2 to 17 sentences."""
    crossed: int = 0
    """Intersections with 15 to 120 sentences."""
    common: bool = True
    density: float = 0.4
    """Share of sentences with a word of praise or blame."""
    sources: int = 1
    """Two: sites of the second speak otherwise of everyone, and of other people (`LEANINGS`)."""
    named: bool = False
    """True: documents have an address, and strata of impact are sites; else the source."""
    corpora: int = 300
    """Corpora drawn, unless quick."""
    effects: Mapping[tuple[str, ...], float] = field(default_factory=dict)
    """("npmi", group, category), ("abuse", group), ("keep", group) -> factor; ("tone", group) -> points."""


SHAPES = {
    "400_sites": Shape(),
    "60_unequal_sites": Shape(sites=60, documents=100, sigma=1.5),
    "12_sites": Shape(sites=12, documents=600, corpora=800),  # 300 leave the coverage of shares an error of .009
    "rare_dense": Shape(documents=8, rare=28, common=False),
    "rare_sparse": Shape(documents=8, rare=28, common=False, density=0.06, named=True),
    "two_sources": Shape(sources=2),
    "crossed_400_sites": Shape(common=False, crossed=16),
    "crossed_60_sites": Shape(sites=60, documents=100, sigma=1.5, common=False, crossed=16, density=0.06),
    "crossed_12_sites": Shape(sites=12, documents=600, common=False, crossed=16),
}
POWER = Shape(
    documents=4,
    effects={
        ("npmi", "a", "crime"): 1.8, ("npmi", "b", "science"): 1.5, ("tone", "b"): -0.16, ("abuse", "c"): 3.0,
        ("keep", "c"): 0.8,
    },
)  # fmt: skip
PLANTED = {
    "npmi_gap_.11": ("association", {"metric": "npmi_gap", "group": "a", "against": "topic/crime"}),
    "npmi_gap_.07": ("association", {"metric": "npmi_gap", "group": "b", "against": "topic/science"}),
    "sentiment_-.16": ("tone", {"metric": "sentiment_gap", "group": "b", "against": "other groups"}),
    "toxicity_x3": ("tone", {"metric": "toxicity_ratio", "group": "c", "against": "other groups"}),
    "keep_.80": ("impact", {"metric": "keep_ratio_adjusted", "group": "c", "stage": "dedup", "language": "en"}),
}
BEFORE = {"npmi_gap_.11": 0.705, "npmi_gap_.07": 0.25, "sentiment_-.16": 1.0, "toxicity_x3": 0.84, "keep_.80": 0.56}
"""Power of the jackknife alone (the audit's version 1), over seeds 0 to 199 of POWER."""
_POWER_CORPORA = 200
_POWER_NOISE = 0.03  # one standard error of a share of 200 corpora is 0.034


class _Drawn:
    """The rows of each count table, and draws that resemble each other within a site."""

    def __init__(self, seed: int, shape: Shape) -> None:
        self.rng, self.shape = np.random.default_rng(seed), shape
        spread = self.rng.lognormal(-(shape.sigma**2) / 2, shape.sigma, shape.sites)
        self.sizes = 1 + self.rng.poisson(shape.documents * spread)
        self.buckets = self.rng.integers(0, 64, shape.sites)
        self.sources = np.arange(shape.sites) % shape.sources
        self.rows: dict[str, list[tuple[Any, ...]]] = {}

    def rates(self, rate: float, leaning: str = "") -> Floats:
        """A rate for each site, drawn around the mean, [sites]."""
        of = (1 - _LIKENESS) / _LIKENESS
        means = rate * np.where(self.sources == 1, LEANINGS.get(leaning, 1.0), 1.0)
        return self.rng.beta(means * of, (1 - means) * of, self.shape.sites)

    def draw(self, of: Integers, rates: Floats, factor: float = 1.0) -> Integers:
        """Number of each site's units that are drawn at its rate, [sites]."""
        return self.rng.binomial(of, np.clip(rates * factor, 0, 1))

    def put(self, table: str, before: tuple[Any, ...], after: tuple[Any, ...], *counts: Integers) -> None:
        """Rows of one key, a bucket each; `before` and `after` are the keys on either side of the bucket.

        Where `before` has the source "web", each source has rows of its own, named "web", "web1", ...
        """
        for source in range(self.shape.sources if "web" in before else 1):
            mine = self.sources == source if "web" in before else np.full(len(self.sources), True)
            key = [f"web{source or ''}" if part == "web" else part for part in before]
            sums = [np.bincount(self.buckets[mine], one[mine], 64).astype(np.int64) for one in counts]
            for bucket in np.flatnonzero(sum(np.abs(one) for one in sums)).tolist():
                self.rows.setdefault(table, []).append((*key, bucket, *after, *(int(one[bucket]) for one in sums)))


def corpus(seed: int, shape: Shape) -> dict[str, pa.Table]:
    """The count tables of one corpus in one language; a sentence mentions one group or nobody."""
    d = _Drawn(seed, shape)
    documents = _documents(d)
    sentences = {key: of * 3 if key[0] == "x" else of + d.rng.binomial(of, 0.5) for key, of in documents.items()}
    entered = np.maximum(d.sizes, sum(documents.values()))
    every = np.maximum(entered * 8, sum(sentences.values()))
    d.put("documents", ("en", "web"), (), entered, every * 15, every, every * 90)
    for axis in sorted({key[0] for key in documents} - {CROSSED}):  # intersections have neither shares nor fates
        mine = {key: of for key, of in documents.items() if key[0] == axis}
        d.put("axes", ("en",), (axis,), sum(mine.values()))
        _fates(d, {(axis, ""): entered - sum(mine.values()), **mine})
    for key, of in documents.items():
        d.put("groups", ("en", "web"), key, of, sentences[key], sentences[key])
    nobody = every - sum(sentences.values())
    _categories(d, sentences, nobody)
    _scores(d, {("", ""): nobody, **sentences})
    return {name: _table(name, rows) for name, rows in d.rows.items()}


def rates_of(shape: Shape) -> dict[str, float]:
    """Group -> the share of documents that mention it."""
    whole = shape.sites * (1 + shape.documents)
    rare = {f"n{place:02d}": (2 + place * 15 / 27) / 1.5 / whole for place in range(shape.rare)}
    crossed = {f"c{place:02d} x f": 15 * 8 ** (place / 15) / 1.5 / whole for place in range(shape.crossed)}
    return {**(COMMON if shape.common else {}), **rare, **crossed}


def axis_of(group: str) -> str:
    """The axis of a drawn group."""
    return "x" if group in COMMON else CROSSED if " x " in group else "nationality"


def truth_of(metric: str, group: str, rates: Mapping[str, float]) -> float | None:
    """The value that the interval of a corpus without bias should hold; None where there is none."""
    if metric not in ("share", "axis_share", "per_million_words"):
        return NULLS.get(metric)
    rate = rates[group]
    axis = sum(of for name, of in rates.items() if axis_of(name) == axis_of(group))
    sentences = 3 if group in COMMON else 1.5  # of a document that mentions it; a document has 8 of 15 words
    return {"share": rate, "axis_share": rate / axis, "per_million_words": 1e6 * rate * sentences / (8 * 15)}[metric]


def _documents(d: _Drawn) -> dict[tuple[str, str], Integers]:
    return {
        (axis_of(group), group): d.draw(d.sizes, d.rates(rate, group))
        if group in COMMON
        else np.minimum(d.rng.poisson(d.sizes * rate), d.sizes)
        for group, rate in rates_of(d.shape).items()
    }


def _categories(d: _Drawn, sentences: Mapping[tuple[str, str], Integers], nobody: Integers) -> None:
    for category in CATEGORIES:
        rates = d.rates(_CATEGORY, "category")
        total = d.draw(nobody, rates)
        for key, of in sentences.items():
            both = d.draw(of, rates, d.shape.effects.get(("npmi", key[1], category), 1.0))
            total = total + both
            d.put("pairs", ("en", "web"), (*key, "topic", category), both)
        d.put("categories", ("en", "web"), ("topic", category), total)


def _scores(d: _Drawn, sentences: Mapping[tuple[str, str], Integers]) -> None:
    scored, praise, abuse = d.rates(d.shape.density), d.rates(_PRAISE, "praise"), d.rates(_ABUSE, "abuse")
    for key, of in sentences.items():
        hits = d.draw(of, scored)
        shift = d.shape.effects.get(("tone", key[1]), 0.0) / 2 / d.shape.density
        total = 2 * d.draw(hits, praise + shift) - hits
        d.put("scores", ("en", "web"), (*key, "sentiment"), of, total, hits, hits)
        listed = d.draw(of, abuse, d.shape.effects.get(("abuse", key[1]), 1.0))
        d.put("scores", ("en", "web"), (*key, "toxicity"), of, listed, listed, listed)


def _fates(d: _Drawn, documents: Mapping[tuple[str, str], Integers]) -> None:
    clean, dedup, lengths = d.rates(_CLEAN, "kept"), d.rates(_DEDUP, "kept"), d.rng.integers(6, 10, d.shape.sites)
    for key, of in documents.items():
        passed = d.draw(of, clean)
        kept = d.draw(passed, dedup, d.shape.effects.get(("keep", key[1]), 1.0))
        ends = (("clean", "short", of - passed), ("dedup", "near", passed - kept), ("kept", "", kept))
        for stage, reason, ended in ends:
            for length in range(6, 10):
                mine = np.where(lengths == length, ended, 0)
                if not d.shape.named:
                    d.put("fates", (stage, reason, "web", "", "en", length), key, mine)
                    continue
                for site in np.flatnonzero(mine).tolist():
                    place = (stage, reason, "web", f"s{site}", "en", length, int(d.buckets[site]))
                    d.rows.setdefault("fates", []).append((*place, *key, int(mine[site])))


def _table(name: str, rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    from governance.checks.bias.count_tables import schema_of

    schema = schema_of(name)
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, of.type) for column, of in zip(columns, schema, strict=True)], schema=schema)


def tables(seed: int, shape: Shape) -> dict[str, list[dict[str, Any]]]:
    """The audit's tables of one corpus."""
    from governance.checks.bias.tables import bias_tables

    return bias_tables(corpus(seed, shape))


def measured(seeds: Sequence[int], shape: Shape) -> tuple[dict[str, Integers], Counter[str]]:
    """Metric -> [corpora, 2] rows whose interval held the truth, rows with one; suite -> corpora with an alarm.

    Only suites with rows are counted.
    """
    held: dict[str, Integers] = {}
    alarms: Counter[str] = Counter()
    rates = rates_of(shape)
    for number, seed in enumerate(seeds):
        found = tables(seed, shape)
        for suite in (*SUITES, "representation"):
            for row in found[suite]:
                truth = truth_of(row["metric"], row["group"], rates) if row["group"] else None
                known = shape.sources == 1 or row["metric"] not in _OF_ONE_SOURCE
                if known and truth is not None and row["lower"] is not None:
                    name = f"intersections.{row['metric']}" if suite == "intersections" else row["metric"]
                    of = held.setdefault(name, np.zeros((len(seeds), 2), np.int64))[number]
                    of += (row["lower"] <= truth <= row["upper"], 1)
            if found[suite] and suite in SUITES:
                alarms[suite] += any(row["q"] is not None and row["q"] < LEVEL for row in found[suite])
    return held, alarms


def pooled_alarms(seeds: Sequence[int], shape: Shape) -> Counter[str]:
    """Suite -> corpora with an alarm, were all sources one: what comparing within sources is for."""
    from governance.checks.bias.tables import bias_tables

    alarms: Counter[str] = Counter()
    for seed in seeds:
        counts = corpus(seed, shape)
        for name, table in counts.items():
            if "source" in table.column_names:
                place = table.column_names.index("source")
                counts[name] = table.set_column(place, "source", pa.array(["web"] * len(table)))
        found = bias_tables(counts)
        for suite in (suite for suite in SUITES if found[suite]):
            alarms[suite] += any(row["q"] is not None and row["q"] < LEVEL for row in found[suite])
    return alarms


def power(seeds: Sequence[int]) -> Counter[str]:
    """Planted effect -> corpora in which it is found."""
    found: Counter[str] = Counter(dict.fromkeys(PLANTED, 0))
    for seed in seeds:
        made = tables(seed, POWER)
        for name, (suite, wanted) in PLANTED.items():
            (row,) = (row for row in made[suite] if all(row[key] == value for key, value in wanted.items()))
            null = NULLS[row["metric"]]
            outside = row["lower"] is not None and not row["lower"] <= null <= row["upper"]
            found[name] += outside and row["q"] is not None and row["q"] < LEVEL
    return found


def bias_null(quick: bool) -> list[Goal]:
    """Coverage and alarms over each shape's corpora without bias (30 when quick); power over 200."""
    goals = []
    for name, shape in SHAPES.items():
        number = 30 if quick else shape.corpora
        goals += list(_goals(name, quick, number, *measured(range(number), shape)))
    few = range(3 if quick else 30)
    for suite, hits in sorted(pooled_alarms(few, SHAPES["two_sources"]).items()):
        goals.append(figure(f"bias_null.two_sources.{suite}.alarms_with_sources_pooled", hits / len(few)))
    for name, hits in power(range(_POWER_CORPORA)).items():
        note = f"{BEFORE[name]:g} by the jackknife alone, on the same corpora"
        goals.append(Goal(f"bias_null.power.{name}", hits / _POWER_CORPORA, BEFORE[name] - _POWER_NOISE, note=note))
    return goals


def coverage_of(held: Integers) -> tuple[float, float]:
    """The share of rows whose interval held the truth, and its standard error; `held` is [corpora, 2].

    The error is at least that of independent rows at 95 %: few rows without a miss would otherwise have none.
    """
    inside, rows = held.sum(axis=0)
    corpora, residuals = len(held), held[:, 0] - inside / rows * held[:, 1]
    clustered = np.sqrt(corpora / (corpora - 1) * (residuals**2).sum()) / rows
    return inside / rows, float(max(clustered, np.sqrt(0.95 * 0.05 / rows)))


def _goals(name: str, quick: bool, number: int, held: Mapping[str, Integers], alarms: Counter[str]) -> Iterator[Goal]:
    for metric, of in sorted(held.items()):
        (coverage, error), rows = coverage_of(of), of[:, 1].sum()
        note = f"standard error {error:.4f}; {rows:,} intervals in {number:,} corpora"
        if rows < MIN_INTERVALS:
            yield figure(f"bias_null.{name}.{metric}.coverage", coverage, f"{note}; few")
            continue
        if not quick and not 0.93 <= coverage <= 0.97 and 0.93 - 2 * error <= coverage <= 0.97 + 2 * error:
            note += "; outside by less than two standard errors"
        reach = 2 * error if quick else 0.0
        yield Goal(f"bias_null.{name}.{metric}.coverage_at_least", coverage, round(0.93 - reach, 4), note=note)
        yield Goal(f"bias_null.{name}.{metric}.coverage_at_most", coverage, round(0.97 + reach, 4), "<=", note)
    by_chance = 2 * (LEVEL * (1 - LEVEL) / number) ** 0.5 if quick else 0  # two standard errors
    for suite, hits in sorted(alarms.items()):
        note = f"corpora of {number:,}, q < .05"
        yield Goal(f"bias_null.{name}.{suite}.alarms", hits / number, round(LEVEL + by_chance, 4), "<=", note)

"""The tables of bias: planted effects are found with sign and size, and equal counts give equal bytes."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from governance.checks.bias.adverse_impact import NOT_COMPARABLE, Passage, adjusted_ratio, impact_rows
from governance.checks.bias.count_tables import by_bucket
from governance.checks.bias.interval_rows import ALL, COLUMNS, NOBODY, OTHERS, false_discovery_rates
from governance.checks.bias.representation import share_rows
from governance.checks.bias.statistics import LOG, jackknife, quantile, share_estimates, two_sided_p
from governance.checks.bias.tables import SUITES, Choices, Recorded, bias_tables
from governance.errors import ManifestError
from tests.governance.bias_corpora import RATES, Planted, corpus, simpson
from tests.governance.bias_counts import table_of
from tests.governance.bias_reference import keep_ratio

PLANTED = Planted(
    association={("a", "crime"): 2.0, ("b", "science"): 0.4}, tone={"b": -0.3}, abuse={"c": 3.0}, keep={"a": 0.7}
)
STATS = Recorded(
    redact={"findings": {"email": 40, "phone": 10}, "canaries": {"email": {"planted": 4, "found": 3}}},
    actions={"email": "replace", "phone": "count"},
    encode={
        "train_tokens": 1_900_000,
        "validation_tokens": 100_000,
        "by_language": {"de": {"tokens": 600, "bytes": 1500}, "en": {"tokens": 500, "bytes": 2000}},
    },
)


@pytest.fixture(scope="module")
def tables():
    return bias_tables(corpus(3, PLANTED), STATS)


def row(rows, **names):
    found = [one for one in rows if all(one[name] == value for name, value in names.items())]
    assert len(found) == 1, (names, len(found))
    return found[0]


def test_every_suite_has_rows_of_one_shape_in_order(tables):
    assert tuple(tables) == SUITES
    for suite, rows in tables.items():
        assert rows or suite in {"instruments", "intersections"}
        for one in rows:
            assert tuple(one) == COLUMNS
            assert all(not isinstance(value, float) or math.isfinite(value) for value in one.values())
            if one["lower"] is not None:
                assert one["lower"] <= one["value"] <= one["upper"]
    json.dumps(tables, allow_nan=False)


def test_representation_is_the_share_of_the_documents(tables):
    for group, rate in RATES.items():
        share = row(tables["representation"], metric="share", group=group)
        assert share["lower"] < rate < share["upper"]
        assert share["upper"] - share["lower"] < rate
    assert row(tables["representation"], metric="axis_share", group="a")["value"] == pytest.approx(0.2 / 0.35, abs=0.05)


def test_planted_associations_have_their_sign_and_size(tables):
    rows = tables["association"]
    more = row(rows, metric="npmi", group="a", against="topic/crime")
    less = row(rows, metric="npmi", group="b", against="topic/science")
    # Bouma's formula on the planted rates: a is in 3 x 0.2 of 8 sentences, and so on
    shares = {group: 3 * rate / 8 for group, rate in RATES.items()}
    for found, group, factor in ((more, "a", 2.0), (less, "b", 0.4)):
        every = 0.05 * (1 + shares[group] * (factor - 1))
        both = shares[group] * 0.05 * factor
        truth = math.log(both / (shares[group] * every)) / -math.log(both)
        assert found["lower"] < truth < found["upper"]
        assert found["p"] is None, "a description: sources and sentences that mention nobody have a part in it"
    assert more["value"] > 0 > less["value"]
    gap = row(rows, metric="npmi_gap", group="a", against="topic/crime")
    assert gap["lower"] > 0
    assert gap["q"] < 0.001
    assert row(rows, metric="npmi_gap", group="b", against="topic/science")["upper"] < 0


def test_planted_tone_has_its_sign_and_size(tables):
    for against in (OTHERS, NOBODY):
        gap = row(tables["tone"], metric="sentiment_gap", group="b", against=against)
        assert gap["lower"] < -0.3 < gap["upper"] < 0
        ratio = row(tables["tone"], metric="toxicity_ratio", group="c", against=against)
        assert 1 < ratio["lower"] < 3 < ratio["upper"]
        assert max(gap["q"], ratio["q"]) < 0.01


def test_planted_impact_is_found_at_its_stage_only(tables):
    for metric in ("keep_ratio", "keep_ratio_adjusted"):
        found = row(tables["impact"], metric=metric, group="a", stage="dedup", language="en")
        assert found["lower"] < 0.7 < found["upper"] < 0.8
        assert "below four fifths" in found["note"]
        assert (found["q"] is None) if metric == "keep_ratio" else (found["q"] < 0.001)
        clean = row(tables["impact"], metric=metric, group="a", stage="clean", language=ALL)
        assert clean["lower"] < 1 < clean["upper"]
        whole = row(tables["impact"], metric=metric, group="a", stage=ALL, language=ALL)
        assert whole["value"] == pytest.approx(found["value"] * clean["value"], rel=0.03)


def test_impact_against_the_highest_rate(tables):
    rows = impact_rows(corpus(3, PLANTED)["fates"], "highest", 30)
    against = {one["against"] for one in rows if one["stage"] == ALL}
    assert against <= {"b", "c"}
    assert all(one["group"] != one["against"] for one in rows)
    assert row(rows, metric="keep_ratio", group="a", stage=ALL, language="en")["upper"] < 0.85
    assert impact_rows(corpus(3)["fates"], "highest", 10**9) == []  # no reference has so many, so there is no row


@pytest.mark.parametrize("seed", range(5))
def test_a_simpson_corpus_is_unfair_raw_and_fair_adjusted(seed):
    rows = impact_rows(simpson(seed))
    raw = row(rows, metric="keep_ratio", stage=ALL, language=ALL)
    adjusted = row(rows, metric="keep_ratio_adjusted", stage=ALL, language=ALL)
    assert raw["upper"] < 0.8
    assert 0.95 <= adjusted["value"] <= 1.05
    assert adjusted["lower"] <= 1 <= adjusted["upper"]


def test_order_and_partition_change_no_byte():
    counts = corpus(5, PLANTED)
    wanted = json.dumps(bias_tables(counts, STATS))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shuffled = {}
        for name, table in counts.items():
            numbers = [key for key in table.column_names if key not in ("bucket", "length_bin") and
                       pa.types.is_integer(table.schema.field(key).type)]  # fmt: skip
            rest = table
            part = table.slice(0, 0)
            for number in numbers:  # some of each count goes into a part of its own
                values = table[number].to_numpy()
                taken = np.sign(values) * rng.integers(0, np.abs(values) + 1)
                place = table.column_names.index(number)
                rest = rest.set_column(place, number, pa.array(values - taken))
                part = (part if part.num_rows else table).set_column(place, number, pa.array(taken))
            both = pa.concat_tables([part, rest])
            shuffled[name] = both.take(pa.array(rng.permutation(both.num_rows)))
        assert json.dumps(bias_tables(shuffled, STATS)) == wanted


def test_one_bucket_has_no_interval():
    """Documents of one domain show nothing about how domains differ."""
    names = ("kept", "", "web", "", "en", 7, 5, "x")
    fates = table_of(
        "fates", [(*names, "a", 50), (*names, "", 90), ("clean", *names[1:], "a", 50), ("clean", *names[1:], "", 10)]
    )
    found = impact_rows(fates)
    assert found
    for one in found:
        assert one["value"] == pytest.approx(50 / 100 / 0.9)
        assert one["lower"] is None
        assert one["upper"] is None
    counts = {
        "documents": table_of("documents", [("en", "web", 5, 100, 900, 90, 5000)]),
        "axes": table_of("axes", [("en", 5, "x", 10)]),
        "groups": table_of("groups", [("en", "web", 5, "x", "a", 10, 12, 11)]),
    }
    found = [row for row in bias_tables(counts)["representation"] if row["metric"] != "coverage"]
    assert found
    for one in found:
        assert one["value"] is not None
        assert (one["lower"], one["upper"]) == (None, None)


def test_a_listed_group_that_nobody_mentions_has_its_row():
    tables = bias_tables(corpus(1), choices=Choices(listed={"en": [("x", "zoe")], "fr": [("x", "a")]}))
    share = row(tables["representation"], metric="share", group="zoe")
    assert (share["value"], share["lower"], share["n"] > 1000) == (0.0, 0.0, True)
    assert 0.03 < share["upper"] < 0.1  # precision of at most 64 clusters, not of thousands of documents
    assert not [one for one in tables["representation"] if one["language"] == "fr"]


def test_nothing_removed_in_a_few_documents_is_not_certain():
    rows = [("kept", "", "web", "", "en", 7, bucket, "x", group, 1) for bucket in range(4) for group in ("a", "")]
    rows += [("clean", "", "web", "", "en", 7, 9, "y", "b", 1)]  # so that there is a stage
    found = row(impact_rows(table_of("fates", rows)), metric="keep_ratio", axis="x", stage="clean", language="en")
    assert found["value"] == 1.0
    assert found["lower"] is None or found["lower"] < 0.8


BUCKETS = np.arange(64)
ONE_STRATUM = np.zeros(64, np.int64)


def test_a_group_of_which_nothing_was_kept_is_surely_below_four_fifths():
    entered = np.full(64, 20)
    group, reference = Passage(entered, np.zeros_like(entered)), Passage(entered, entered // 2)
    found = adjusted_ratio(group, reference, ONE_STRATUM, BUCKETS)
    assert (found.value, found.lower) == (0.0, 0.0)
    assert found.upper < 0.02
    assert found.p < 1e-6
    one = np.where(BUCKETS == 7, 20, 0)
    alone = adjusted_ratio(Passage(one, np.zeros_like(one)), reference, ONE_STRATUM, BUCKETS)
    assert math.isnan(alone.upper), "one bucket bounds nothing"


def test_seven_of_seven_kept_is_at_most_the_largest_possible_ratio():
    seven = np.where(BUCKETS < 7, 1, 0)
    reference = Passage(np.full(64, 1000), np.full(64, 385))
    found = adjusted_ratio(Passage(seven, seven), reference, ONE_STRATUM, BUCKETS)
    assert found.value == pytest.approx(1 / 0.385)
    assert 1.6 < found.lower < 2.0
    assert found.upper <= 1 / 0.385 + 1e-9
    assert 2 * 0.385**7 / 4 < found.p < 2 * 0.385**7


def test_a_difference_between_sources_is_no_impact():
    """French occurs mostly in the source of which little is kept, whichever group is mentioned."""
    rng, rows = np.random.default_rng(1), []
    for source, rate, sizes in (("rich", 0.9, {"fr": 1, "": 20}), ("poor", 0.3, {"fr": 9, "": 10})):
        for bucket in range(64):
            for group, number in sizes.items():
                kept = rng.binomial(number, rate)
                for stage, reason, documents in (("kept", "", kept), ("clean", "short", number - kept)):
                    rows.append((stage, reason, source, "", "en", 7, bucket, "x", group, documents))
    found = impact_rows(table_of("fates", rows))
    adjusted = row(found, metric="keep_ratio_adjusted", language="en", stage=ALL)
    assert row(found, metric="keep_ratio", language="en", stage=ALL)["upper"] < 0.75
    assert adjusted["lower"] < 1 < adjusted["upper"]


@pytest.mark.parametrize("seed", range(3))
def test_adjusted_ratios_are_those_of_a_plain_mantel_haenszel(seed):
    rng = np.random.default_rng(seed)
    rows = [
        (stage, reason, source, site, "en", length, 8 * place + length, "x", group, rng.integers(0, 9))
        for stage, reason in (("clean", "short"), ("clean", "dull"), ("dedup", "near"), ("kept", ""))
        for source in "st" for place, site in enumerate(("", "a.example", "(small sites)")) for length in range(3)
        for group in ("", "a", "b")
    ]  # fmt: skip
    table = table_of("fates", rows)
    plain = [
        {**one, "place": (one["site"], one["bucket"] * (one["site"] == "(small sites)"))} for one in table.to_pylist()
    ]
    every = [("clean", None), ("dedup", None), ("kept", None)]
    filters = {
        ALL: {"entered": every, "kept": every[2:]},
        "clean": {"entered": every, "kept": every[1:]},
        "dedup": {"entered": every[1:], "kept": every[2:]},
        "clean/short": {"entered": every, "kept": [("clean", "dull"), *every[1:]]},
        "clean/dull": {"entered": every, "kept": [("clean", "short"), *every[1:]]},
    }
    found = impact_rows(table)
    assert {one["stage"] for one in found} == set(filters)
    for stage, outcomes in filters.items():
        for group in "ab":
            expected = keep_ratio(plain, group, outcomes, ("source", "language", "length_bin", "place"))
            value = row(found, metric="keep_ratio_adjusted", language=ALL, stage=stage, group=group)["value"]
            assert value == pytest.approx(expected, abs=1e-9), (stage, group)


def test_a_group_without_comparable_documents_has_no_ratio():
    rows = [("kept", "", source, "", "en", 7, bucket, "x", group, 5)
            for source, group in (("s", "a"), ("t", "")) for bucket in range(64)]  # fmt: skip
    rows += [("clean", "short", "t", "", "en", 7, 3, "x", "", 5)]
    found = row(impact_rows(table_of("fates", rows)), metric="keep_ratio_adjusted", language="en", stage="clean")
    assert (found["value"], found["p"], found["note"]) == (None, None, NOT_COMPARABLE)


def test_leaving_out_a_bucket_is_the_ratio_of_the_others():
    rng = np.random.default_rng(1)
    strata, buckets = np.repeat(np.arange(5), 40), np.tile(np.arange(40) % 13, 5)
    entered, reference = rng.integers(1, 5, 200), rng.integers(1, 30, 200)
    group, others = Passage(entered, rng.binomial(entered, 0.6)), Passage(reference, rng.binomial(reference, 0.7))
    logs = []
    for left_out in [None, *range(13)]:
        kept = buckets != left_out
        found = adjusted_ratio(group.at(kept), others.at(kept), strata[kept], buckets[kept])
        logs.append(math.log(found.value))
    error = math.sqrt(12 / 13 * sum((one - logs[0]) ** 2 for one in logs[1:]))
    whole = adjusted_ratio(group, others, strata, buckets)
    assert whole.jackknife_error == pytest.approx(error, rel=1e-9)


def test_shares_index_and_values_beyond_the_most():
    rows = [("domain", f"d{number}", number % 64, number + 1, 0, 0) for number in range(80)]
    rows += [
        ("year", str(2000 + year), bucket, 10 + bucket % (year + 2), 0, 5) for year in range(4) for bucket in range(64)
    ]
    rows += [("year", "unknown", bucket, 7, 0, 5) for bucket in range(64)]
    found = share_rows(table_of("shares", rows), most=3)
    numbers = np.arange(1, 81)
    hhi = row(found, metric="hhi", axis="domain")
    assert hhi["value"] == pytest.approx((numbers**2).sum() / numbers.sum() ** 2)
    assert hhi["lower"] is None
    assert "one bucket" in hhi["note"]
    assert [one["group"] for one in found if one["axis"] == "domain" and one["metric"] == "share"] == [
        "d79",
        "d78",
        "d77",
        "(others)",
    ]
    year = row(found, metric="hhi", axis="year")
    assert 0.25 <= year["value"] < 0.3  # four years; "unknown" does not count
    assert year["lower"] <= year["value"] <= year["upper"]
    assert row(found, metric="hhi_of_words", axis="year")["value"] == 0.25


def test_privacy_and_parity_come_from_the_stages(tables):
    before = row(tables["privacy"], group="email", stage="before")
    assert (before["value"], before["n"], before["note"]) == (20.0, 2_000_000, "recall of canaries 3/4")
    assert row(tables["privacy"], group="email", stage="after")["value"] == 0.0
    assert row(tables["privacy"], group=ALL, stage="after")["value"] == 5.0
    assert row(tables["parity"], metric="premium", language="de")["value"] == pytest.approx(0.4 / 0.25)
    assert row(tables["parity"], metric="tokens_per_byte", language="en")["value"] == 0.25
    without = bias_tables({}, STATS, choices=Choices(parity_reference="fr"))["parity"]
    assert row(without, metric="premium", language="de")["value"] is None


def test_a_biased_instrument_is_named_in_the_rows_it_made():
    bad = {name: None for name in COLUMNS} | {"instrument": "sentiment", "language": "en", "note": "biased: x"}
    rows = bias_tables(corpus(1), instruments=[bad])["tone"]
    assert {one["note"].partition(";")[0] for one in rows if one["instrument"] == "sentiment"} == {
        "biased instrument: sentiment"
    }
    assert {one["note"] for one in rows if one["instrument"] == "toxicity"} == {None}


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ManifestError, match="bucket 64"):
        by_bucket(table_of("axes", [("en", 64, "x", 1)]), ("language",), "documents")
    with pytest.raises(ManifestError, match="lacks"):
        by_bucket(table_of("axes", [("en", 3, "x", 1)]), ("language",), "words")
    with pytest.raises(ManifestError, match="attic"):
        impact_rows(table_of("fates", [("attic", "", "w", "", "en", 3, 3, "x", "a", 1)]))


def test_by_bucket_adds_and_sorts():
    table = table_of("axes", [("b", 3, "x", 1), ("a", 63, "y", 2), ("b", 3, "z", 4)])
    found = by_bucket(table, ("language",), "documents")
    assert list(found) == [("a",), ("b",)]
    assert (found[("a",)][63], found[("b",)][3], found[("b",)].sum()) == (2, 5, 5)
    assert by_bucket(table.slice(0, 0), ("language",), "documents") == {}


def test_the_jackknife_equals_its_plain_reference():
    rng = np.random.default_rng(0)
    hits, n = rng.integers(0, 9, 64), rng.integers(10, 90, 64)
    n[5] = hits[5] = 0
    found = jackknife(lambda a, b: a / b, (hits[None], n[None]), n[None], LOG, 0.05)
    center = math.log(hits.sum() / n.sum())
    changes = [math.log((hits.sum() - a) / (n.sum() - b)) - center for a, b in zip(hits, n, strict=True) if b]
    error = math.sqrt(62 / 63 * sum(d * d for d in changes))
    degrees = (3.16 - 2.77 / math.sqrt(63)) * sum(d * d for d in changes) ** 2 / sum(d**4 for d in changes)
    assert found.error[0] == pytest.approx(error)
    assert found.degrees[0] == pytest.approx(min(degrees, 62))
    assert math.log(found.upper[0]) == pytest.approx(center + float(quantile(min(degrees, 62))) * error)
    assert found.p[0] == pytest.approx(float(two_sided_p((center - math.log(0.05)) / error, min(degrees, 62))))


def test_shares_at_the_edge_have_the_bound_of_their_clusters():
    none, all_ = np.zeros((1, 64), np.int64), np.full((1, 64), 10)
    found = share_estimates(np.concatenate([none, all_]), np.concatenate([all_, all_]))
    reach = 1 - 0.025 ** (1 / 64)
    assert found.lower == pytest.approx([0.0, 1 - reach])
    assert found.upper == pytest.approx([reach, 1.0])


def test_q_values_are_those_of_benjamini_and_hochberg():
    # the fifteen p values of their paper's example: four are called at 5 %
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1.0,
    ]
    q = false_discovery_rates(p[::-1])[::-1]
    assert sum(value <= 0.05 for value in q) == 4
    assert q == sorted(q)
    assert q[3] == pytest.approx(0.0095 * 15 / 4)
    assert false_discovery_rates([]) == []

"""A gap due only to the mix of sources is not a finding; a gap within each source is one, whatever the mix."""

from __future__ import annotations

import numpy as np
import pytest

from governance.checks.bias.findings import findings_of
from governance.checks.bias.tables import bias_tables
from governance.checks.bias.within_source import NOT_TOGETHER
from tests.governance import test_bias_counts as plain

SITES = 40
PLAY = {"tone": "terrible", "tone_rate": 0.6, "theft": 0.4, "idiots": 0.3}
SPEECH = {"tone": "wonderful", "tone_rate": 0.6, "theft": 0.05, "idiots": 0.02}
SOURCES = {"plays": PLAY, "speeches": SPEECH}
MIX = {"plays": {"Muslims": 18, "Christians": 2}, "speeches": {"Muslims": 2, "Christians": 18}}
"""Sentences per site; people of one group stand mostly in plays, those of the other mostly in speeches."""


def sentence(rng, people, words, worse):
    """One sentence on `people`, in the words of its source; `worse`: further words of blame, crime and abuse."""
    said = [f"The {people} came in"]
    if rng.random() < words["tone_rate"]:
        said.append(f"it was {words['tone']}")
    if rng.random() < worse:
        said.append("it was terrible")
    if rng.random() < min(1.0, words["theft"] + worse):
        said.append("they spoke of theft")
    if rng.random() < min(1.0, words["idiots"] + worse):
        said.append("idiots, they said")
    return " and ".join(said) + "."


def found(seed, worse, sources=SOURCES, mix=MIX):
    """Tables and findings of a corpus in which Muslims are described worse, by `worse`, in each source."""
    rng = np.random.default_rng(seed)
    rows = []
    for source, words in sources.items():
        for site in range(SITES):
            text = [sentence(rng, people, words, worse * (people == "Muslims"))
                    for people, number in mix[source].items() for _ in range(number)]  # fmt: skip
            text += [sentence(rng, "neighbours", words, 0.0) for _ in range(20)]
            rows.append({"id": f"{source}{site}", "text": "\n\n".join(text), "source": source, "language": "en",
                         "url": f"https://{source}{site}.example/a", "licence": "MIT", "reason": ""})  # fmt: skip
    counts = plain.counted(rows)
    tables = bias_tables(counts)
    return tables, findings_of(tables, counts, plain.LEXICONS)


def of_muslims(rows):
    """The rows of the group against the other, by metric."""
    chosen = [row for row in rows if row["group"] == "muslim" and row["against"] in ("other groups", "crime/crime")]
    return {row["metric"]: row for row in chosen}


def pooled(row):
    """The row's value with sources pooled, from its note."""
    assert row["note"].endswith(" with sources pooled")
    return float(row["note"].split()[-4])


@pytest.mark.parametrize("seed", range(3))
def test_a_gap_that_the_mix_of_sources_makes_is_no_finding(seed):
    tables, findings = found(seed, 0.0)
    assert not [one["id"] for one in findings if one["against"] != "nobody"]
    tone = of_muslims(tables["tone"])
    assert abs(tone["sentiment_gap"]["value"]) < 0.1
    assert 0.6 < tone["toxicity_ratio"]["value"] < 1.5
    assert pooled(tone["sentiment_gap"]) < -0.7
    assert pooled(tone["toxicity_ratio"]) > 3
    association = of_muslims(tables["association"])["npmi_gap"]
    assert abs(association["value"]) < abs(pooled(association))


@pytest.mark.parametrize("seed", range(2))
def test_a_gap_within_each_source_is_a_finding_with_its_size(seed):
    _, findings = found(seed, 0.3)
    known = {
        (one["metric"], one["group"]): one for one in findings if one["against"] in ("other groups", "crime/crime")
    }
    gap = known["sentiment_gap", "muslim"]
    assert gap["lower"] < -0.3 < gap["upper"] < 0
    assert gap["terms"]["words"][0]["term"] == "terrible"
    assert known["toxicity_ratio", "muslim"]["lower"] > 1


def test_a_gap_that_the_mix_of_sources_hides_is_a_finding():
    kindly = {"plays": MIX["speeches"], "speeches": MIX["plays"]}  # now the group occurs where the words are kind
    tables, findings = found(7, 0.3, mix=kindly)
    row = of_muslims(tables["tone"])["sentiment_gap"]
    assert row["upper"] < 0 < pooled(row)
    assert any(one["metric"] == "sentiment_gap" and one["group"] == "muslim" for one in findings)


def test_groups_that_no_source_has_together_are_not_compared():
    apart = {"plays": {"Muslims": 20}, "speeches": {"Christians": 20}}
    tables, findings = found(1, 0.3, mix=apart)
    row = of_muslims(tables["tone"])["sentiment_gap"]
    assert (row["value"], row["p"]) == (None, None)
    assert NOT_TOGETHER in row["note"]
    assert not [one for one in findings if one["against"] == "other groups"]

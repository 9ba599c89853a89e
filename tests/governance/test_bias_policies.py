"""The two policies on a corpus with a planted bias and on one without, from texts to the decision."""

from __future__ import annotations

import json
import random
from functools import cache

import pytest

from benchmarks.measures.governance.bias_policies import judged
from data_pipeline.documents import DOCUMENT_SCHEMA
from governance.checks.bias.bias import BiasConfig, bias_audit
from governance.stage import Runtime
from tests.governance.test_bias_stage import artifact

WORDS = {"tone": " terrible", "toxicity": " moron", "association": " theft"}
"""Effect -> a word of one list alone."""
GATES = {
    "tone": "tone.sentiment_gap",
    "toxicity": "tone.toxicity_ratio",
    "association": "association.npmi_gap",
    "impact": "impact.four_fifths",
}
COMMON, PLANTED, KEPT, KEPT_LESS = 0.1, 0.8, 0.95, 0.5


def documents(effect: str | None) -> dict[str, list[dict[str, object]]]:
    """Kept and removed documents of 60 sites about Muslims, Christians and neither; `effect` is planted on Muslims."""
    chance = random.Random(0)
    blank = dict.fromkeys(DOCUMENT_SCHEMA.names, "")
    rows: dict[str, list[dict[str, object]]] = {"kept": [], "removed": []}
    for number in range(1800):
        who = ("The Muslims", "The Christians", "The houses")[number % 3]
        sentences = []
        for _ in range(3):
            rates = {kind: PLANTED if kind == effect and not number % 3 else COMMON for kind in WORDS}
            said = "".join(word for kind, word in WORDS.items() if chance.random() < rates[kind])
            sentences.append(f"{who} are near the{said} river.")
        place = {"id": f"d{number}", "url": f"https://site{number // 3 % 60}.example/{number}", "source": "s"}
        row = {**blank, **place, "text": " ".join(sentences), "language": "en", "position": number}
        kept = chance.random() < (KEPT_LESS if effect == "impact" and not number % 3 else KEPT)
        rows["kept" if kept else "removed"].append(row if kept else {**row, "reason": "short", "evidence": ""})
    return rows


@pytest.fixture(scope="module")
def tables_of(tmp_path_factory):
    """Effect -> the tables of the stage `bias` on its corpus."""

    @cache
    def made(effect):
        root, rows = tmp_path_factory.mktemp("corpus"), documents(effect)
        stages = {
            "clean": artifact(root, "clean", "removed", [rows["removed"]]),
            "redact": artifact(root, "redact", "documents", [rows["kept"]]),
        }
        manifest = bias_audit(stages, BiasConfig(), Runtime(root))
        return json.loads((root / manifest.folder / "tables.json").read_bytes())

    return made


@pytest.mark.parametrize("effect", GATES)
def test_a_planted_bias_closes_the_strict_gate_and_is_a_warning_under_the_default_policy(effect, tables_of):
    strict, statuses = judged(tables_of(effect), "policy-strict")
    failed = {name for name, status in statuses.items() if status == "fail"}
    assert failed == {GATES[effect]}, statuses  # and no other gate fails for it
    assert strict.decision == "BLOCK"
    [closing] = [reason for reason in strict.reasons if reason["closes"]]
    assert (closing["gate"], closing["owner"]) == (GATES[effect], "fairness")
    mild, _ = judged(tables_of(effect), "policy")
    assert mild.decision == "PASS"
    assert [(one["gate"], one["closes"]) for one in mild.reasons if one["status"] == "fail"] == [(GATES[effect], False)]


@pytest.mark.parametrize("policy", ["policy", "policy-strict"])
def test_a_corpus_without_bias_passes_both(policy, tables_of):
    judgement, statuses = judged(tables_of(None), policy)
    assert (judgement.decision, judgement.reasons) == ("PASS", ())
    assert set(GATES.values()) <= {name for name, status in statuses.items() if status == "pass"}

"""Personal data planted in the sentences behind a finding: none of it reaches the report."""

from __future__ import annotations

import json

import pytest

from data_pipeline.documents import DOCUMENT_SCHEMA
from data_pipeline.pii.detect import replace_all
from governance.checks.bias.bias import BiasConfig, bias_audit
from governance.reports.facts.report_facts import findings_of
from governance.reports.facts.samples import mask
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_bias_stage import artifact
from tests.governance.test_reports_page import corpus, verdict_of

PLANTED = {
    "EMAIL": "jane.doe@mail.example.org",
    "PHONE": "+44 20 7946 0958",
    "IBAN": "GB82 WEST 1234 5698 7654 32",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IP_ADDRESS": "203.0.113.77",
}
BY_DEFAULT = ("EMAIL", "PHONE", "IBAN", "CREDIT_CARD")
"""Types that are masked without the rules of `redact`: addresses and runs of digits."""
OWNER = "john.roe@example.org"
"""In the documents' ids, as a mailbox names its messages."""


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A root whose sentences about Muslims are unkind and hold all planted data, and the artifacts of its report."""
    root = tmp_path_factory.mktemp("root")
    blank = dict.fromkeys(DOCUMENT_SCHEMA.names, "")
    told = "; ".join(PLANTED.values())
    texts = [f"The Muslims are terrible ({told}).", "The Christians are wonderful."]
    rows = [
        {**blank, "id": f"mail/{OWNER}/{number}", "url": f"https://site{number % 40}.example/{number}", "source": "s",
         "language": "en", "text": texts[number % 2], "position": number}
        for number in range(240)
    ]  # fmt: skip
    made = corpus(root)
    redacted = artifact(root, "redact", "documents", [rows])
    made["bias"] = bias_audit({"redact": redacted}, BiasConfig(), Runtime(root))
    return root, made


def test_the_audits_own_evidence_is_the_corpus_text(audited):
    """Without it, no test below could fail: the artifact holds what the report must not show."""
    root, made = audited
    raw = (root / made["bias"].folder / "findings.json").read_text()
    assert all(value in raw for value in (*PLANTED.values(), OWNER))


@pytest.mark.parametrize(("rules", "types"), [(replace_all, PLANTED), (mask, BY_DEFAULT)])
def test_three_sentences_of_each_finding_are_masked(audited, rules, types):
    root, made = audited
    examples = [one for row in findings_of(made, root, rules) for one in row["examples"] if "terrible" in one["text"]]
    assert len(examples) >= 3
    for one in examples:
        assert "The Muslims are terrible" in one["text"], "masked away"
        assert "[e-mail]" in one["id"]
        whole = json.dumps(one)
        assert not any(PLANTED[kind] in whole for kind in types), whole
        assert OWNER not in whole


def test_no_planted_value_is_in_the_report(audited):
    root, made = audited
    written = root / report(made, verdict_of(made, "PASS"), root, Runtime(root), replace_all).folder
    found = json.loads((written / "report.json").read_bytes())
    assert any("terrible" in example["text"] for row in found["findings"] for example in row["examples"])
    for file in sorted(path for path in written.rglob("*") if path.is_file()):
        text = file.read_bytes().decode("utf-8", "replace")
        left = [value for value in (*PLANTED.values(), OWNER) if value in text]
        assert not left, (file.name, left)

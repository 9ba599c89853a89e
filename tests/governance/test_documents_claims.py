"""Documents claim only tested and counted facts: findings with p, q, n; domains, dates, types, parent models."""

import json
import re

import pytest

from governance.manifest import Input
from governance.reports.documents.all_documents import document_texts
from governance.reports.documents.corpus_documents import training_content, training_data_disclosure
from governance.reports.documents.corpus_facts import finding_text, findings
from governance.reports.documents.evidence import TO_COMPLETE, Evidence
from governance.reports.documents.model_documents import metadata_block, model_card, model_documentation
from governance.reports.facts.stage_counts import stage_tables
from tests.governance.test_documents import SHAPE, changed, evidence, run  # noqa: F401

CARD, CONTENT = "model_card.md", "training_content.md"


def row(metric, group, value, lower, upper, **more):
    named = {"language": "en", "axis": "nationality", "against": "other groups", "stage": None, "instrument": None}
    return {**named, "metric": metric, "group": group, "value": value, "lower": lower, "upper": upper, "n": 412,
            "p": 0.001, "q": 0.01, "note": None, **more}  # fmt: skip


TONE = [
    row("sentiment_gap", "danish", -0.2, -0.3, -0.1),
    row("sentiment_gap", "danish", -0.2, -0.3, -0.1, language="(all)"),  # the same sentences
    row("sentiment_gap", "swedish", -0.4, -0.5, -0.3, p=None, q=None, n=2),  # could not be tested
    row("sentiment_gap", "french", 0.01, -0.1, 0.2, p=0.9, q=0.95),
]
SHARES = [
    row("share_of_words", value, share, None, None, axis=axis, p=None, q=None, language=None)
    for axis, value, share in (
        ("domain", "example.org", 0.75), ("domain", "example.net", 0.2), ("domain", "unknown", 0.05),
        ("domain", "(others)", 0.05),
    )
]  # fmt: skip
YEARS = [row("share", year, 0.5, None, None, axis="year", p=None, q=None) for year in ("2019", "2021", "unknown")]


@pytest.fixture
def texts(evidence):  # noqa: F811
    return document_texts(changed(evidence, bias={"tone": TONE, "shares": [*SHARES, *YEARS]}))


def biases(texts):
    return json.loads(texts["croissant.json"])["rai:dataBiases"]


def test_a_bias_is_a_tested_finding_and_listed_once(texts):
    output = biases(texts)
    assert output[0] == (
        "1 of 3 tested differences between groups is significant (q below 0.05, 95 % interval without equality)."
    )
    assert output[1:] == [
        "tone: sentiment gap of en nationality danish against other groups: -0.2 (95 % interval -0.3 to -0.1; p 0.001,"
        " q 0.01, n 412)"
    ]
    assert texts[CARD].count("danish") == 1
    assert re.search(
        r"\| tone \| sentiment\\_gap \| en nationality danish \|.*\| 0\.001 \| 0\.01 \| 412 \|", texts[CARD]
    )
    assert "swedish" not in texts[CARD]
    assert "mentioned in" not in texts["croissant.json"]


def test_what_was_not_tested_is_reported(evidence):  # noqa: F811
    untested = document_texts(changed(evidence, bias={}))
    assert biases(untested) == ["No difference between groups was tested."]
    assert "No difference between groups was tested." in untested[CARD]
    nothing = changed(evidence, bias={"tone": TONE[2:]})
    assert findings(nothing) == {}
    assert biases(document_texts(nothing)) == [
        "None of 1 tested difference between groups is significant (q below 0.05, 95 % interval without equality)."
    ]


def test_personal_data_names_the_types_that_were_sought(evidence):  # noqa: F811
    redact = evidence.artifacts["redact"]
    stats = {**redact.stats, "findings": {"iban": 0, "e-mail": 2, "telephone": 0}, "documents_with_findings": 1}
    counts = stage_tables([redact.model_copy(update={"stats": stats})])
    output = json.loads(document_texts(changed(evidence, counts=counts))["croissant.json"])
    [found, note] = output["rai:personalSensitiveInformation"]
    assert found.startswith("e-mail: 2 found, action ")
    assert not note.endswith(".")  # "; " joins it with the next
    assert "3 structured types; names and places are not sought" in note
    assert note.startswith("Personal data was found in 1 of ")
    nothing = {
        **stats,
        "findings": dict.fromkeys(stats["findings"], 0),
        "canaries": {"iban": {"planted": 2, "found": 2}},
    }
    ingest = {"by_source": {"wiki": {"passed_over": {"redirect": 3}}}}
    counts = stage_tables(
        [
            evidence.artifacts["ingest"].model_copy(update={"stats": ingest}),
            redact.model_copy(update={"stats": nothing}),
        ]
    )
    sheet = document_texts(changed(evidence, counts=counts))["datasheet.md"]
    assert "None." not in sheet.partition("## Personal data")[2].partition("## Uses")[0]
    assert "| redirect | 3 |" in sheet.partition("### Records skipped")[2].partition("###")[0]


def test_the_waivers_of_a_verdict_are_named(evidence):  # noqa: F811
    used = [{"gate": "a.b", "approver": "ann", "expires": "2027-01-01", "reason": "We | read it."}]
    verdict = {**evidence.found["verdict"], "waivers": used}
    sheet = document_texts(changed(evidence, verdict=verdict))["datasheet.md"]
    assert "| waivers used | a.b, by ann until 2027-01-01: We \\| read it. |" in sheet


def test_domains_dates_and_parents_that_evidence_has_are_filled_in(texts, evidence):  # noqa: F811
    content = texts[CONTENT]
    assert "example.org 75.0 %" in content or "example.org 75 %" in content
    assert "unknown" not in content.partition("by words:")[2].partition("|")[0]
    day = evidence.artifacts["ingest"].run["finished"][:10]
    assert f"| latest date at which data was collected | not after {day} |" in content
    assert "2019 50" in content
    assert "C(2025) 8311 of 5 December 2025" in content
    assert "24 July 2025" in content
    for name in (CARD, CONTENT, "model_documentation.md"):
        assert "none: trained from random weights" in texts[name]
    assert texts[CONTENT].count(TO_COMPLETE) < document_texts(changed(evidence, bias={}))[CONTENT].count(TO_COMPLETE)


@pytest.mark.parametrize(
    ("stage", "path"), [("checkpoint", "checkpoint/0123456789abcdef/manifest.json"), ("file", "Qwen2.5-0.5B")]
)
def test_a_model_that_was_made_from_another_names_it(evidence, stage, path):  # noqa: F811
    """A folder of weights, of the hub or exported, is an input without a stage of ours."""
    parent = Input(stage=stage, digest="ab" * 32, path=path)
    train = evidence.model.model_copy(update={"inputs": (*evidence.model.inputs, parent)})
    carbon = {"value": 9.0, "low": 9.0, "high": 9.0, "unit": "g CO2e", "factors": [], "needs": []}
    known = changed(evidence, energy__footprint__figures__carbon_location=carbon)
    made = Evidence(known.found, {**evidence.artifacts, "train": train}, evidence.root)
    for write in (model_card, training_content, model_documentation):
        text = write(made)
        assert f"{path} (SHA-256 abababababababab" in text
        assert "random weights" not in text
    assert f"training_type: {TO_COMPLETE}" in metadata_block(made)
    assert "training_type: pre-training" in metadata_block(known)


def test_opt_outs_of_code_are_reservations_of_rights(evidence):  # noqa: F811
    clean = next(row for row in evidence.found["funnel"] if row["stage"] == "clean")
    code = {**clean, "stage": "code", "by_source": {}, "removed": {"path_opted_out": 4, "generated": 9}}
    removed = {**clean, "removed": {**clean["removed"], "opted_out": 3}}
    funnel = [part for row in evidence.found["funnel"] for part in ([removed, code] if row is clean else [row])]
    made = changed(evidence, funnel=funnel)
    for write in (training_content, training_data_disclosure):
        [line] = [line for line in write(made).splitlines() if "a reservation" in line and "robots.txt" in line]
        assert line.split("|")[2].strip() == "7"


def test_a_classifier_is_said_to_predict_labels(evidence):  # noqa: F811
    encode = evidence.artifacts["encode"]
    classes = {**encode.config, "classification": {"label": "tone", "labels": ["good", "bad"]}}
    labelled = {**evidence.artifacts, "encode": encode.model_copy(update={"config": classes})}
    config = {**evidence.at("training.config"), "model": {**SHAPE, "num_labels": 2}}
    found = changed(evidence, training__config=config).found
    texts = document_texts(Evidence(found, labelled, evidence.root))
    form = texts["model_documentation.md"]
    assert "| output modalities | labels of texts |" in form
    assert "| objective | prediction of a text's label |" in form
    assert "| labels | column tone: good, bad |" in texts["datasheet.md"]
    assert "documents of text, with labels (column tone: good, bad)" in texts["training_data_disclosure.md"]
    [card] = [part["modelCard"] for part in json.loads(texts["cyclonedx.json"])["components"] if "modelCard" in part]
    assert card["modelParameters"]["approach"] == {"type": "supervised"}
    assert card["modelParameters"]["task"] == "text-classification"
    plain = document_texts(evidence)["model_documentation.md"]
    assert "| objective | prediction of the next token |" in plain


def test_no_address_is_invented(texts):
    for name, text in texts.items():
        assert "spdx.org/licenses/LicenseRef" not in text, name
        assert "spdx.org/licenses/NOASSERTION" not in text, name


def test_a_finding_against_sentences_without_a_group_says_so():
    worded = finding_text("tone", row("sentiment_gap", "danish", -0.2, -0.3, -0.1, against="nobody"))
    assert "danish against sentences that mention no group: -0.2" in worded


def test_a_source_without_an_allowed_licence_that_is_in_the_corpus_is_stated(evidence):  # noqa: F811
    """A waived gate, or one that only warns, lets it through: the forms must not say that it was refused."""
    first, *rest = evidence.at("sources")
    gone = {**first, "name": "gone", "fate": "refused: licence", "documents_kept": 0}
    held = {**first, "name": "held", "fate": "refused: licence", "documents_kept": 7}
    texts = document_texts(changed(evidence, sources=[gone, held, *rest]))
    [refused] = [line for line in texts[CONTENT].splitlines() if line.startswith("| sources refused for their licence")]
    assert refused == "| sources refused for their licence | gone | `sources` |"
    kind = f"held ({first['kind']})"
    for name, words in (
        ("training_data_disclosure.md", "| 1. sources |"),
        ("model_documentation.md", "| sources kept |"),
    ):
        [line] = [line for line in texts[name].splitlines() if line.startswith(words)]
        assert kind.replace("_", "\\_") in line
        assert "gone" not in line
    [data] = [part for part in json.loads(texts["cyclonedx.json"])["components"] if part["type"] == "data"]
    assert "held" in {row["name"] for row in data["data"]}
    assert "not allowed, but in the corpus" in texts["datasheet.md"]
    labels = {row["prov:label"] for row in json.loads(texts["croissant.json"])["prov:wasDerivedFrom"]}
    assert {
        f"source {kind}: not allowed, but in the corpus",
        f"source gone ({first['kind']}): refused: licence",
    } <= labels

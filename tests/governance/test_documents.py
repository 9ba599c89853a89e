"""Documents state the facts of report.json, leave the rest to a person, and escape external text."""

import copy
import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from governance.energy.ledger import host_ledger
from governance.files import append_line
from governance.manifest import read_manifest, verify
from governance.reports.documents.all_documents import document_texts, documents, read_report
from governance.reports.documents.corpus_documents import token_range
from governance.reports.documents.evidence import TO_COMPLETE, Evidence, architecture
from governance.reports.documents.markdown import plain
from governance.reports.documents.model_documents import THRESHOLDS, metadata_block, threshold_ratio
from governance.reports.facts.energy_totals import energy_facts
from governance.reports.html.markup import visible
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_reports_page import HOSTILE, corpus, ledger, trained, verdict_of

FLOPS_PER_TOKEN = 64_000_123
MARKDOWN = [
    "datasheet.md", "model_card.md", "model_documentation.md", "sci_for_ai.md", "training_content.md",
    "training_data_disclosure.md",
]  # fmt: skip
MACHINES = ["croissant.json", "cyclonedx.json", "openlineage.ndjson", "prov.json", "spdx.json"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run with its documents: root, artifacts, the report and the documents."""
    root = tmp_path_factory.mktemp("root")
    made = corpus(root)
    made["train"] = trained(root, made)
    start = {
        "event": "start",
        "attempt": 2,
        "step": 300,
        "flops_per_token": FLOPS_PER_TOKEN,
        "device": f"chip {HOSTILE}",
    }
    append_line(root / made["train"].folder / "metrics.jsonl", json.dumps(start))
    ledger(root)
    reported = report(made, verdict_of(made, "WAIVED"), root, Runtime(root))
    return root, made, reported, documents(made, reported, Runtime(root))


@pytest.fixture(scope="module")
def evidence(run):
    root, made, reported, _ = run
    return Evidence(read_report(reported, root), made, root)


def changed(evidence, **values):
    """The same evidence with other values at some paths (dots are written as two underlines)."""
    found = copy.deepcopy(dict(evidence.found))
    for path, value in values.items():
        *way, last = path.split("__")
        place = found
        for name in way:
            place = place[name]
        place[last] = value
    return Evidence(found, evidence.artifacts, evidence.root)


def test_the_documents_are_an_artifact_that_verifies_and_is_found_again(run):
    root, made, reported, manifest = run
    folder = root / manifest.folder
    assert sorted(path.name for path in folder.iterdir()) == sorted([*MARKDOWN, *MACHINES, "manifest.json"])
    assert verify(read_manifest(folder / "manifest.json"), root) == []
    assert documents(made, reported, Runtime(root, make=False)).digest == manifest.digest
    assert manifest.inputs[0].stage == "report"
    (folder / "model_card.md").write_text((folder / "model_card.md").read_text().replace("600", "601"))
    try:
        assert "model_card.md" in verify(manifest, root)[0]
    finally:
        (folder / "model_card.md").write_text((folder / "model_card.md").read_text().replace("601", "600"))
    assert verify(manifest, root) == []


def test_the_energy_of_a_run_is_without_that_of_its_documents(run, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(run[0], root)
    made = list(run[1].values())
    before = energy_facts(made, root)
    at = {"host": "node1", "process": [1, 0], "interval": "d", "attempt": "d", "stage": "documents"}
    count = {"method": "RAPL", "millijoules": 7_000, "low": 7_000, "high": 7_000}
    end = {"kind": "end", "at": "2026-01-01T00:03:00.000Z", "outcome": "surviving", "cause": ""}
    append_line(host_ledger(root / "energy.jsonl", "node1"), json.dumps({**end, **at, **count}))
    assert energy_facts(made, root) == before
    append_line(
        host_ledger(root / "energy.jsonl", "node1"),
        json.dumps({**end, **at, **count, "stage": "clean", "interval": "e"}),
    )
    assert energy_facts(made, root)["total"]["joules"] == pytest.approx(before["total"]["joules"] + 7)


def rows(text):
    """(item, entry, path) of each line of a form that names its evidence."""
    return re.findall(r"^\| (.+?) \| (.+?) \| `([a-z_.]+)` \|$", text, re.MULTILINE)


@pytest.mark.parametrize("name", MARKDOWN)
def test_each_entry_is_in_report_json_and_its_numbers_are_those(evidence, name):
    output = rows(document_texts(evidence)[name])
    assert len(output) >= 5
    numbers = 0
    for item, entry, path in output:
        value = evidence.at(path)
        assert value is not None, path
        if isinstance(value, int) and not item.startswith(("threshold", "size, as a range")):
            first = entry.split(" ")[0]
            assert float(first.replace(",", "")) == pytest.approx(value, rel=1e-3 if "e+" in first else 0)
            numbers += 1
    assert numbers >= 2


def test_the_card_reports_the_energy_of_a_line_with_its_bounds_and_what_is_not_in_it(evidence):
    def output(of):
        return {item: entry for item, entry, _ in rows(document_texts(of)["model_card.md"])}.get(
            "energy of the last checkpoint with its ancestors"
        )

    [gap] = evidence.at("energy.views.missing")  # the tokenizer was not measured
    joules = evidence.at("energy.views.rows.cumulative.joules")
    entry = output(evidence)
    assert entry.startswith(f"{joules / 3.6e6:.6g} kWh (from ")
    assert entry.endswith(f" to no known bound; without {gap})")
    row = "energy__views__rows__cumulative__"
    bounds = {f"{row}joules": 3.6e6, f"{row}low": 3.6e5, f"{row}high": 7.2e6, f"{row}at_least": False}
    known = changed(evidence, **bounds, energy__views__missing=[])
    assert output(known) == "1 kWh (from 0.1 kWh to 2 kWh)"
    assert output(changed(evidence, **{f"{row}joules": None})) is None
    assert output(changed(evidence, energy__views=None)) is None


def test_another_number_in_the_report_is_another_number_in_the_documents(evidence):
    texts = document_texts(evidence)
    other = document_texts(changed(evidence, summary__train_tokens=48_812_035, summary__tokens_trained=4_915_201))
    for name in MARKDOWN:
        assert "48,812,034" in texts[name]
        assert "48,812,034" not in other[name]
        assert "48,812,035" in other[name]
    for name in ("cyclonedx.json", "spdx.json"):
        assert "4915200" in texts[name]
        assert "4915201" in other[name]


def test_what_evidence_has_nothing_of_is_left_to_a_person(evidence):
    texts = document_texts(evidence)
    for name in [*MARKDOWN, "croissant.json", "cyclonedx.json", "spdx.json"]:
        assert TO_COMPLETE in texts[name], name
    nothing = dict.fromkeys(("joules", "low", "high", "wasted"))
    total = {**evidence.at("energy.total"), **nothing}
    unknown = changed(evidence, energy__total=total, energy__views=None, training__flops=None, energy__stages=[])
    texts = document_texts(unknown)
    assert "| energy of the run, failed attempts included | to be completed by a person |" in texts["model_card.md"]
    assert "co2_eq_emissions: unknown" in texts["model_card.md"]
    assert "| FLOP of the training | to be completed by a person |" in texts["model_documentation.md"]
    assert "environmentalConsiderations" not in texts["cyclonedx.json"]
    assert "EnergyConsumption" not in texts["spdx.json"]
    assert not re.search(r"\| (energy|FLOP)[^|]*\| 0", texts["model_card.md"])


def test_without_a_training_there_is_no_word_of_a_model(run, evidence):
    root, made, _, _ = run
    found = {**evidence.found, "training": None, "summary": {**evidence.found["summary"], "tokens_trained": None}}
    texts = document_texts(Evidence(found, {k: v for k, v in made.items() if k != "train"}, root))
    assert sorted(texts) == sorted([*MACHINES, "datasheet.md", "training_content.md", "training_data_disclosure.md"])
    assert "machine-learning-model" not in texts["cyclonedx.json"]
    assert "ai_AIPackage" not in texts["spdx.json"]


def test_hostile_text_is_only_text(evidence):
    texts = document_texts(evidence)
    assert sum("alert(" in texts[name] for name in MARKDOWN) >= 1
    for name in MARKDOWN:
        assert "<script" not in texts[name]
    for name in {*texts} - {"prov.json"}:  # its names equal those of the manifests, to the byte
        assert "\u202e" not in texts[name]
        assert "\\u202e" not in texts[name]
        assert "\x00" not in texts[name]


@given(st.text(st.characters(), max_size=60))
@example(HOSTILE)
@example("a | b\n| c |\n[x](http://y) <b>&amp; ``` # head")
def test_no_text_becomes_markdown(text):
    made = plain(text)
    assert len(made.splitlines()) <= 1
    assert not re.search(r"[`*_\[\]|#~$]", re.sub(r"\\.", "", made))
    assert not set(made) & set("<>")
    made.encode("utf-8")


@given(st.text(st.characters(), max_size=40))
@example('a: "b"\n- c')
@example("---\nx: 1")
@example("\x85\u2028\ufeff")
@example("null")
@example(HOSTILE)
def test_the_hub_reads_any_text_of_the_card_as_one_value(evidence, text):
    known = {"value": 1.5e-7, "at_least": False, "factors": [], "needs": [], "low": None, "high": None, "unit": "g"}
    block = metadata_block(
        changed(
            evidence,
            energy__footprint__figures__carbon_location=known,
            energy__footprint__country=text or "SWE",
            training__stats__tasks={"blimp" + text: {"acc": 0.25, "questions": 8, "step": 4}},
        )
    )
    read = ModelCard(f"{block}\n# Card\n").data
    assert read.co2_eq_emissions["emissions"] == 1.5e-7
    assert read.co2_eq_emissions["geographical_location"] == visible(text or "SWE")
    assert [(of.dataset_name, of.metric_type, of.metric_value) for of in read.eval_results] == [
        ("blimp" + visible(text), "acc", 0.25),
        ("blimp" + visible(text), "questions", 8),
    ]
    assert read.license is None


def test_flop_are_tokens_times_flop_per_token_and_compared_with_the_thresholds(evidence):
    assert evidence.at("training.flops") == FLOPS_PER_TOKEN * 8192 * 600
    assert "| FLOP of the training | 3.146e+14 FLOP | `training.flops` |" in document_texts(evidence)["model_card.md"]
    assert [threshold.flop for threshold in THRESHOLDS] == [10**23, 10**25]
    assert "C(2025) 5045" in THRESHOLDS[0].source
    assert "Article 51(2)" in THRESHOLDS[1].source
    assert threshold_ratio(10**23, THRESHOLDS[0]) == "not above: 1 of the threshold"
    assert threshold_ratio(2 * 10**25, THRESHOLDS[1]) == "above: 2 of the threshold"
    card = document_texts(changed(evidence, training__flops=3 * 10**24))["model_card.md"]
    assert "above: 30 of the threshold" in card
    assert "not above: 0.3 of the threshold" in card


@pytest.mark.parametrize(
    ("tokens", "output"),
    [
        (10**9 - 1, "fewer than 1 billion tokens"),
        (10**9, "1 billion to 10 trillion tokens"),
        (10**13, "more than 10 trillion tokens"),
    ],
)
def test_the_range_of_a_count_of_tokens(tokens, output):
    assert token_range(tokens) == output


def test_every_stage_has_a_start_and_an_end_in_the_events(run, evidence):
    events = [json.loads(line) for line in document_texts(evidence)["openlineage.ndjson"].splitlines()]
    jobs = [(event["job"]["name"], event["eventType"]) for event in events]
    assert jobs == [(stage, kind) for stage in dict.fromkeys(job for job, _ in jobs) for kind in ("START", "COMPLETE")]
    assert {stage for stage, _ in jobs} == set(run[1])
    made = {event["job"]["name"]: event["outputs"][0] for event in events if event["outputs"]}
    train = next(event for event in events if event["job"]["name"] == "train")
    assert {item["name"] for item in train["inputs"]} == {made["encode"]["name"]}
    assert train["inputs"][0]["facets"]["version"] == made["encode"]["facets"]["version"]
    audit = next(event for event in events if event["job"]["name"] == "audit")
    results = audit["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"]
    assert [row["success"] for row in results] == [row["status"] == "pass" for row in evidence.at("checks")]


SHAPE = {
    "num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
    "feed_forward": "relu", "intermediate_size": 256, "norm": "layernorm", "norm_position": "post",
    "position_embedding": "sinusoidal", "max_position_embeddings": 128,
}  # fmt: skip


def test_a_model_is_called_by_its_kind():
    assert architecture(SHAPE).startswith("decoder-only Transformer: 6 layers of width 64; ")
    pairs = architecture({**SHAPE, "encoder_layers": 1})
    assert pairs.startswith("encoder-decoder Transformer: 1 layer of the encoder, 6 of the decoder, of width 64; ")
    assert architecture({**SHAPE, "num_labels": 3}).endswith("; a head of 3 labels in place of the tokens'")


@pytest.mark.parametrize(
    ("field", "tag"), [("encoder_layers", "text2text-generation"), ("num_labels", "text-classification")]
)
def test_the_card_is_found_under_what_the_model_does(evidence, field, tag):
    assert "pipeline_tag: text-generation\n" in metadata_block(evidence)
    found = copy.deepcopy(evidence.found)
    found["training"]["config"].setdefault("model", {})[field] = 2
    assert f"pipeline_tag: {tag}\n" in metadata_block(Evidence(found, evidence.artifacts, evidence.root))

"""Each document is read by its own tool; a tool that finds a change reports it, and so is a missing tool."""

import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from governance.files import append_line
from governance.reports.documents.all_documents import documents, read_report
from governance.reports.documents.corpus_facts import SPDX_LISTED, licence_text
from governance.reports.documents.evidence import Evidence
from governance.reports.documents.model_documents import model_card
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_documents import FLOPS_PER_TOKEN
from tests.governance.test_reports_page import corpus, folder_of, ledger, manifest_of, trained, verdict_of

COLUMNS = ("id", "text", "source", "url", "language", "licence", "sha256", "file")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of the documents of a run whose corpus has two shards, and its facts."""
    root = tmp_path_factory.mktemp("root")
    made = corpus(root)
    files = []
    for shard in range(2):
        path = folder_of(root, "redact") / "documents" / f"00000{shard}-manuals.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{name: f"{name} {shard} {row}" for name in COLUMNS} | {"position": row} for row in range(3 + shard)]
        pq.write_table(pa.Table.from_pylist(rows), path)
        files.append(path)
    old = made["redact"]
    made["redact"] = manifest_of(root, "redact", old.inputs, old.stats, {}, files)
    tokens = [made["redact"].as_input(), made["tokenizer"].as_input()]
    made["encode"] = manifest_of(root, "encode", tokens, made["encode"].stats)
    made["train"] = trained(root, made)
    start = {"event": "start", "attempt": 2, "step": 300, "flops_per_token": FLOPS_PER_TOKEN}
    append_line(root / made["train"].folder / "metrics.jsonl", json.dumps(start))
    ledger(root)
    reported = report(made, verdict_of(made, "WAIVED"), root, Runtime(root))
    folder = root / documents(made, reported, Runtime(root)).folder
    return folder, Evidence(read_report(reported, root), made, root)


@pytest.fixture(scope="module")
def found(run):
    return run[1].found


def text_of(run, name):
    return (run[0] / name).read_text(encoding="utf-8")


def test_mlcroissant_reads_every_shard_and_finds_a_changed_byte(run, tmp_path):
    mlc = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    folder, _ = run
    dataset = mlc.Dataset(jsonld=folder / "croissant.json")
    issues = dataset.metadata.issues
    assert not issues.errors
    assert all("datePublished" in warning for warning in issues.warnings)  # a person publishes it
    assert json.loads(text_of(run, "croissant.json"))["conformsTo"][1] == "http://mlcommons.org/croissant/RAI/1.0"
    assert dataset.metadata.data_biases
    assert dataset.metadata.data_preprocessing_protocol
    read = {records.id: list(dataset.records(records.id)) for records in dataset.metadata.record_sets}
    assert {name: len(rows) for name, rows in read.items()} == {"000000-manuals": 3, "000001-manuals": 4}
    assert read["000001-manuals"][3]["000001-manuals/text"] == b"text 1 3"
    assert read["000001-manuals"][3]["000001-manuals/position"] == 3
    copied = tmp_path / "root"
    shutil.copytree(folder.parents[1], copied)
    shard = next(copied.glob("redact/*/documents/000001-manuals.parquet"))
    shard.write_bytes(shard.read_bytes() + b"x")
    other = mlc.Dataset(jsonld=copied / "documents" / folder.name / "croissant.json")
    with pytest.raises(Exception, match="Download") as refused:
        list(other.records("000001-manuals"))
    assert "000001-manuals.parquet is not identical" in str(refused.value.__cause__)


def test_spdx_is_read_by_the_model_of_spdx_3(run, found):
    spdx = pytest.importorskip("spdx_python_model", reason="spdx-python-model is not installed").v3_0_1
    objects = spdx.SHACLObjectSet()
    spdx.JSONLDDeserializer().read(io.BytesIO(text_of(run, "spdx.json").encode()), objects)
    assert objects.missing_ids == set()
    spdx.JSONLDSerializer().write(objects, io.BytesIO())  # checks the required properties of each class
    [model] = objects.foreach_type(spdx.ai_AIPackage)
    [corpus] = objects.foreach_type(spdx.dataset_DatasetPackage)
    [row] = [row for row in found["energy"]["stages"] if row["stage"] == "train"]
    [energy] = model.ai_energyConsumption.ai_trainingEnergyConsumption
    assert energy.ai_energyQuantity == row["all_attempts"] / 3.6e6
    assert energy.ai_energyUnit == spdx.ai_EnergyUnitType.kilowattHour
    trained_on = [r for r in objects.foreach_type(spdx.Relationship) if r.relationshipType.endswith("trainedOn")]
    assert [(r.from_, list(r.to)) for r in trained_on] == [(model, [corpus])]
    assert corpus.dataset_datasetSize == found["summary"]["bytes_kept"]
    assert len(list(objects.foreach_type(spdx.software_File))) == 3  # two shards, and the files that the training wrote


def test_cyclonedx_holds_to_its_schema(run, found):
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    pytest.importorskip("jsonschema", reason="cyclonedx-python-lib[json-validation] is not installed")
    check = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    text = text_of(run, "cyclonedx.json")
    assert check.validate_str(text) is None
    assert check.validate_str(text.replace('"machine-learning-model"', '"machine"')) is not None
    [model] = [part for part in json.loads(text)["components"] if part["type"] == "machine-learning-model"]
    [energy] = model["modelCard"]["considerations"]["environmentalConsiderations"]["energyConsumptions"]
    assert energy["activityEnergyCost"]["value"] == found["energy"]["total"]["joules"] / 3.6e6
    assert {"name": "assay:flops", "value": str(found["training"]["flops"])} in model["properties"]


def test_the_hub_reads_the_card_and_its_carbon(run, found):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    data = hub.ModelCard(text_of(run, "model_card.md")).data.to_dict()
    assert data["pipeline_tag"] == "text-generation"
    assert not {"license", "co2_eq_emissions"} & set(data)  # no source states that either
    grid = {"value": 30.0, "low": None, "high": None, "source": "operator: 2025\n# x", "year": 2025, "unit": "g"}
    figure = found["energy"]["footprint"]["figures"]["carbon_location"]
    figure = {**figure, "value": 0.25, "at_least": True, "factors": ["grid"], "needs": ["energy.factors.pue"]}
    output = {**found["energy"]["footprint"], "factors": {"grid": grid}, "country": "SWE"}
    output["figures"] = {**output["figures"], "carbon_location": figure}
    _, evidence = run
    known = Evidence({**found, "energy": {**found["energy"], "footprint": output}}, evidence.artifacts, evidence.root)
    emissions = hub.ModelCard(model_card(known)).data.to_dict()["co2_eq_emissions"]
    assert emissions["emissions"] == 0.25
    assert emissions["training_type"] == "pre-training"
    assert emissions["geographical_location"] == "SWE"
    assert "0.25 g CO2e" in emissions["source"]
    assert "operator: 2025" in emissions["source"]


def test_openlineage_makes_the_same_events_of_its_own_classes(run):
    pytest.importorskip("openlineage.client", reason="openlineage-python is not installed")
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
    from openlineage.client.facet_v2 import data_quality_assertions_dataset, dataset_version_dataset
    from openlineage.client.serde import Serde

    def version(facets):
        [name] = facets
        assert name == "version"
        output, kind = facets[name], dataset_version_dataset.DatasetVersionDatasetFacet
        made = kind(datasetVersion=output["datasetVersion"], producer=output["_producer"])
        assert made._schemaURL == output["_schemaURL"]
        return {name: made}

    def assertions(facets):
        kind, one = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet, data_quality_assertions_dataset
        for facet in facets.values():
            made = kind(assertions=[one.Assertion(**row) for row in facet["assertions"]], producer=facet["_producer"])
            assert made._schemaURL == facet["_schemaURL"]
        return {}

    events = [json.loads(line) for line in text_of(run, "openlineage.ndjson").splitlines()]
    assert events
    for output in events:
        for item in output["inputs"]:
            assertions(item["inputFacets"])
        made = RunEvent(
            eventType=RunState(output["eventType"]),
            eventTime=output["eventTime"],
            run=Run(runId=output["run"]["runId"]),
            job=Job(namespace=output["job"]["namespace"], name=output["job"]["name"]),
            inputs=[InputDataset(i["namespace"], i["name"], facets=version(i["facets"])) for i in output["inputs"]],
            outputs=[OutputDataset(o["namespace"], o["name"], facets=version(o["facets"])) for o in output["outputs"]],
            producer=output["producer"],
        )
        theirs, ours = json.loads(Serde.to_json(made)), {**output, "run": {"runId": output["run"]["runId"]}}
        assert bare(theirs) == bare(ours)


def bare(value):
    """Without empty parts, and without the facets that are compared by themselves."""
    if isinstance(value, dict):
        kept = {name: bare(item) for name, item in value.items() if name != "inputFacets"}
        return {name: item for name, item in kept.items() if item not in ({}, [], None)}
    return [bare(item) for item in value] if isinstance(value, list) else value


def test_prov_reads_the_lineage(run):
    prov = pytest.importorskip("prov.model", reason="prov is not installed")
    document = prov.ProvDocument.deserialize(content=text_of(run, "prov.json"))
    names = {str(record.identifier) for record in document.get_records(prov.ProvEntity)}
    assert sum(name.startswith("assay:train-") for name in names) == 1
    assert sum(name.startswith("assay:ingest-") for name in names) == 1


def test_every_licence_that_gets_an_address_is_in_the_spdx_list():
    spdx = pytest.importorskip("cyclonedx.spdx", reason="cyclonedx-python-lib is not installed")
    assert [name for name in SPDX_LISTED if not spdx.is_supported_id(name)] == []
    assert licence_text("CC0-1.0") == "https://spdx.org/licenses/CC0-1.0"
    for name in ("LicenseRef-Public-Domain", "NOASSERTION", "CC0-1.0 OR MIT", "Public"):
        assert "://" not in licence_text(name)
        assert licence_text(name).startswith(name)

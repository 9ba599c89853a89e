"""Formats that auditors ask for: Croissant's provenance and use conditions, AB 2013's items, SCI for AI's score."""

import json
import re

import pytest

from governance.reports.documents.all_documents import document_texts
from governance.reports.documents.corpus_documents import PURPOSES, training_data_disclosure
from governance.reports.documents.evidence import TO_COMPLETE
from governance.reports.documents.model_documents import sci_for_ai
from governance.reports.facts.stage_counts import source_outcome
from governance.stage_order import CORPUS_STAGES
from tests.governance.test_documents import FLOPS_PER_TOKEN, changed, evidence, run  # noqa: F401 (fixtures)

ODRL, CC, PROV = "http://www.w3.org/ns/odrl/2/", "http://creativecommons.org/ns#", "http://www.w3.org/ns/prov#"


def test_croissant_states_provenance_and_use_conditions(evidence):  # noqa: F811
    """Oracles: mlcroissant 1.1.1 takes it for version 1.1; rdflib reads its terms."""
    mlc = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    rdflib = pytest.importorskip("rdflib")
    text = document_texts(evidence)["croissant.json"]
    document = json.loads(text)
    metadata = mlc.Metadata.from_json(ctx=mlc.Context(), json_=json.loads(text))
    assert metadata.ctx.is_v1_1()
    assert not metadata.issues.errors
    assert document["conformsTo"][0] == "http://mlcommons.org/croissant/1.1"
    graph = rdflib.Graph().parse(data=text, format="json-ld")
    [dataset] = graph.subjects(rdflib.RDF.type, rdflib.URIRef("https://schema.org/Dataset"))

    def objects(subject, term):
        return list(graph.objects(subject, rdflib.URIRef(term)))

    labels = {str(objects(entity, f"{PROV}label")[0]) for entity in objects(dataset, f"{PROV}wasDerivedFrom")}
    assert labels == {
        f"source {row['name']} ({row['kind']}): {source_outcome(row)}" for row in evidence.found["sources"]
    }
    made = objects(dataset, f"{PROV}wasGeneratedBy")
    digests = {row["stage"]: row["digest"] for row in evidence.found["lineage"]}
    stages = [row["stage"] for row in evidence.found["funnel"]]
    assert {str(one) for one in made} == {f"urn:assay:{stage}:{digests[stage]}" for stage in stages}
    assert all(objects(one, f"{PROV}endedAtTime") and objects(one, f"{PROV}startedAtTime") for one in made)
    offers = {
        str(objects(offer, "https://schema.org/name")[0]): offer
        for offer in graph.subjects(rdflib.RDF.type, rdflib.URIRef(f"{ODRL}Offer"))
    }
    assert set(offers) == {name for name in evidence.licences if name.startswith(("CC-BY-", "CC0-"))}
    duties = {
        name: {
            str(action).removeprefix(CC)
            for permission in objects(offer, f"{ODRL}permission")
            for duty in objects(permission, f"{ODRL}duty")
            for action in objects(duty, f"{ODRL}action")
        }
        for name, offer in offers.items()
    }
    assert duties == {"CC-BY-SA-4.0": {"Notice", "Attribution", "ShareAlike"}, "CC0-1.0": set()}
    codes = {str(code) for code in graph.objects(None, rdflib.URIRef("https://schema.org/termCode"))}
    assert codes == {name for name in evidence.licences if not name.startswith(("NOASSERTION", "LicenseRef-"))}


def test_a_licence_without_a_machine_readable_deed_gets_no_rule(evidence):  # noqa: F811
    sources = [{**row, "licences": {"CC-BY-NC-ND-4.0": 2, "LicenseRef-Ours": 1}} for row in evidence.at("sources")]
    known = changed(evidence, sources=sources)
    usage = json.loads(document_texts(known)["croissant.json"])["usageInfo"]
    [term, offer, own] = usage
    assert term["url"] == "https://spdx.org/licenses/CC-BY-NC-ND-4.0"
    assert [rule["odrl:action"]["@id"] for rule in offer["odrl:permission"]] == ["cc:Reproduction", "cc:Distribution"]
    assert [rule["odrl:action"]["@id"] for rule in offer["odrl:prohibition"]] == ["cc:CommercialUse"]
    assert (own["@type"], own["name"]) == ("DefinedTerm", "LicenseRef-Ours")


def items(text):
    return [(item, entry) for item, entry in re.findall(r"^\| (\d+\. .+?) \| (.+?) \|", text, re.MULTILINE)]


def test_the_disclosure_has_twelve_items_and_knows_only_what_the_run_recorded(evidence):  # noqa: F811
    text = training_data_disclosure(evidence)
    found = dict(items(text))
    numbers = {int(item.partition(".")[0]) for item in found}
    assert numbers | {9} == set(range(1, 13))  # the ninth is a table
    assert "## 9: " in text
    for stage in evidence.found["funnel"]:
        assert f"| {stage['stage']} | {PURPOSES[stage['stage']]} |" in text
    assert found["3. data points: tokens for training"] == "48,812,034"
    assert found["11. first used for a model here"] == "not after 2026-11-24"  # two attempts: only the last is known
    assert found["12. synthetic data, by which models"] == "none: no source is marked as synthetic"
    asked = f"not known: {TO_COMPLETE}"
    for item in ("2. how", "5. protected", "6. purchased", "7. personal information that is left", "8. aggregate"):
        assert next(entry for name, entry in found.items() if name.startswith(item)) == asked
    nothing = changed(
        evidence, summary={**dict.fromkeys(evidence.found["summary"])}, sources=[], lineage=[], counts=[], bias={},
        representation=None, synthetic={"sources": [], "token_share": None}, training=None,
    )  # fmt: skip
    left = {
        entry for item, entry in items(training_data_disclosure(nothing)) if not item.startswith(("4. kind", "12. syn"))
    }
    assert left == {asked}


def test_each_step_of_a_corpus_has_a_purpose():
    assert {row.name for row in CORPUS_STAGES if row.documents} | {"mix"} == set(PURPOSES)  # a plan passes documents on


FIGURE = {"value": 900.0, "low": 300.0, "high": 1800.0, "at_least": False, "factors": [], "needs": []}


def scores(text):
    rows = re.findall(r"^\| (10\^\d+ [\w ]+) \| (\w+).*? \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    return {(unit, kind): cells for unit, kind, *cells in rows}


def test_sci_for_ai_divides_all_carbon_by_each_unit(evidence):  # noqa: F811
    known = evidence.at("energy.footprint.figures.carbon_total")
    found = scores(sci_for_ai(changed(evidence, energy__footprint__figures__carbon_total={**known, **FIGURE})))
    flop, tokens, parameters = FLOPS_PER_TOKEN * 8192 * 600, 48_812_034, 10_712_448
    lost = sum(row["lost"] for row in evidence.at("faults.attempts"))
    assert lost == 7  # the first attempt went seven steps beyond its checkpoint
    funnel = evidence.found["funnel"]
    raw = tokens * funnel[0]["bytes_in"] / funnel[-1]["bytes_kept"]
    amounts = {
        ("10^15 FLOP", "effective"): (flop, 1e15), ("10^15 FLOP", "gross"): (flop * (600 + lost) / 600, 1e15),
        ("10^9 training tokens", "effective"): (tokens, 1e9), ("10^9 training tokens", "gross"): (raw, 1e9),
        ("10^9 parameters", "effective"): (parameters, 1e9), ("10^9 parameters", "gross"): (parameters, 1e9),
    }  # fmt: skip
    assert found.keys() == amounts.keys()
    for key, (amount, unit) in amounts.items():
        output = [float(cell.split(" ")[0].replace(",", "")) for cell in found[key]]
        expected = [amount, *(FIGURE[name] * unit / amount for name in ("value", "low", "high"))]
        assert output == pytest.approx(expected, rel=1e-3)
    experts = changed(evidence, training__config={"model": {"moe": {"num_local_experts": 8}}})
    assert scores(sci_for_ai(experts))["10^9 parameters", "effective"][0] == "not known"


def test_sci_for_ai_proves_that_stopped_runs_are_in_it(evidence):  # noqa: F811
    text = sci_for_ai(evidence)
    assert "| the parts add up to the whole, to the millijoule | yes | `energy.total` |" in text
    for cause, joules in evidence.at("energy.wasted_by_cause").items():
        assert f"| {cause} | {joules:,.3f} J |" in text
    total = evidence.at("energy.total")
    short = changed(evidence, energy__total={**total, "wasted": total["wasted"] - 0.001})
    assert "| the parts add up to the whole, to the millijoule | no: " in sci_for_ai(short)
    spent = re.findall(r"^\| (?:data|synthetic|model|other)[^|]* \| ([\d,.]+) J \| ", text, re.MULTILINE)
    known = [row["all_attempts"] or row["joules"] or 0 for row in evidence.at("energy.stages")]
    assert sum(float(cell.replace(",", "")) for cell in spent) == pytest.approx(sum(known), abs=1e-6)
    assert "| retirement | not measured here |" in text


def test_without_factors_or_a_ledger_nothing_is_claimed(evidence):  # noqa: F811
    unknown = {"value": None, "low": None, "high": None}
    carbon = {**evidence.at("energy.footprint.figures.carbon_total"), **unknown}
    none = changed(
        evidence, energy__footprint__figures__carbon_total=carbon, training__flops=None,
        energy__total={**evidence.at("energy.total"), "from": "manifests", "surviving": None, "wasted": None},
    )  # fmt: skip
    text = sci_for_ai(none)
    assert all(cells[1:] == ["not known", "not known", "no known bound"] for cells in scores(text).values())
    assert scores(text)["10^15 FLOP", "gross"][0] == "not known"
    assert f"| the parts add up to the whole, to the millijoule | {TO_COMPLETE} |" in text

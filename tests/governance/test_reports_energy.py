"""The report's views and footprint: planted energy appears in each view, and the page agrees with report.json."""

import json
import re

import pytest

from governance.energy.factors import Factor, Factors, FactorsConfig
from governance.files import append_line, write_text
from governance.reports.facts.energy_totals import energy_facts, look_up
from governance.reports.facts.report_facts import ReportInputs
from governance.reports.html.markup import meters
from governance.reports.report import report
from governance.stage import Runtime
from tests.governance.test_reports_page import Page, corpus, key_of, ledger, trained, verdict_of

SAID = {"source": "the operator <b>", "year": 2025}
FACTORS = Factors(
    grid=Factor(value=100, low=50, high=200, **SAID), pue=Factor(value=1.5, **SAID), country="SWE",
    embodied=Factor(value=1000, **SAID), lifetime=Factor(value=5, **SAID),
)  # fmt: skip
TOKENS = 8192 * 600


def folder(stage):
    return f"{stage}/{key_of(stage)[:16]}"


def data_line(root, stage, millijoules):
    about = {"interval": f"m{stage}", "attempt": f"m{stage}", "stage": stage, "host": "node1", "process": [1, 0]}
    output = {"method": "RAPL", "millijoules": millijoules, "low": millijoules, "high": millijoules}
    at, marks = "2026-01-01T00:03:00.000Z", {"artifact": folder(stage)}
    end = {"outcome": "surviving", "cause": "", "marks": marks}
    append_line(root / "energy.jsonl", json.dumps({"kind": "end", **about, "at": at, **output, **end}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("energy")
    made = corpus(root)
    made["train"] = trained(root, made)
    ledger(root)
    data_line(root, "encode", 40_000)  # its manifest states 33.5 J of another making: the ledger names the artifact
    manifest = report(made, verdict_of(made, "PASS"), root, Runtime(root), extra=ReportInputs(FACTORS))
    found = json.loads((root / manifest.folder / "report.json").read_bytes())
    return root, made, manifest, found, (root / manifest.folder / "report.html").read_text(encoding="utf-8")


def test_each_view_is_what_was_planted_and_keeps_the_law(run):
    _, _, _, found, _ = run
    views = found["energy"]["views"]
    rows = views["rows"]
    assert (views["step"], views["artifact"]) == (600, folder("train"))
    assert rows["marginal"]["joules"] == 850.0
    assert rows["training"]["joules"] == 900.123 + 850.0
    # ingest, clean, dedup, redact and encode by manifest or ledger; the tokenizer was not measured
    data = 182.25 + 1204.5 + 377.001 + 90.0 + 40.0
    share = TOKENS / 48_812_034
    assert rows["cumulative"]["joules"] == pytest.approx(1750.123 + share * data, abs=0.01)
    assert rows["cumulative_whole"]["joules"] == pytest.approx(1750.123 + data, abs=1e-6)
    assert rows["cumulative"]["high"] is None
    assert views["missing"] == [folder("tokenizer")]
    assert {name for name, row in rows.items() if row["at_least"]} == {"cumulative", "cumulative_whole"}
    assert rows["fully_loaded"]["joules"] == found["energy"]["total"]["joules"] == 3099.75
    for row in rows.values():
        parts = [row[name] for name in ("surviving", "wasted", "running")]
        assert sum(part or 0 for part in parts) == pytest.approx(row["joules"], abs=1e-9)
        assert row["per_token"]["joules"] == row["joules"] / row["tokens"]
    assert rows["marginal"]["tokens"] == 8192 * 300
    assert rows["fully_loaded"]["wasted"] == 99.877
    assert views["rates"]["per_document"]["joules"] == pytest.approx(data / views["rates"]["documents"])
    assert views["rates"]["per_nat"]["joules"] == pytest.approx(1750.123 / views["rates"]["nats"])
    steps = {row["step"]: row for row in found["energy"]["checkpoints"]}
    assert steps[600]["with_ancestors"] == rows["cumulative"]["joules"]
    assert (steps[600]["kwh"], steps[600]["carbon"]) == (rows["cumulative"]["kwh"], rows["cumulative"]["carbon"])
    assert steps[300]["with_ancestors"] == pytest.approx(900.123 + share / 2 * data, abs=0.01)


def test_the_footprint_is_of_everything_and_names_its_factors(run):
    _, _, _, found, html = run
    output = found["energy"]["footprint"]
    figures = output["figures"]
    total = found["energy"]["total"]
    assert figures["carbon_location"]["value"] == pytest.approx(3099.75 / 3.6e6 * 1.5 * 100)
    assert figures["carbon_location"]["high"] == pytest.approx(total["high"] / 3.6e6 * 1.5 * 200)
    assert figures["carbon_market"]["value"] == figures["carbon_location"]["value"]
    assert "no contract is set" in figures["carbon_market"]["name"]
    summary = found["summary"]
    assert summary["energy_kwh"] == total["kwh"]["value"] == figures["electricity"]["value"]
    bounds = [summary[f"carbon_{name}grams"] for name in ("low_", "", "high_")]
    assert bounds == [figures["carbon_location"][name] for name in ("low", "value", "high")]
    assert summary["carbon_wasted_grams"] == pytest.approx(99.877 / 3.6e6 * 1.5 * 100)
    assert sum(row["kwh"]["value"] for row in found["energy"]["phases"]) == pytest.approx(summary["energy_kwh"])
    page = Page(html)
    words = " ".join(page.words)
    for row in output["factors"].values():
        assert row["source"] in words
    assert "Not computed" in words
    assert "the operator &lt;b&gt;" in html
    assert "with ancestors, all data" in words
    assert re.search(r"0\.129 g", words)  # 3,099.75 J x 1.5 x 100 g/kWh


def test_without_a_factor_the_page_says_unknown_and_what_to_set(tmp_path):
    made = corpus(tmp_path)
    manifest = report(made, {}, tmp_path, Runtime(tmp_path))
    found = json.loads((tmp_path / manifest.folder / "report.json").read_bytes())["energy"]
    assert found["views"] is None
    values = {name: figure["value"] for name, figure in found["footprint"]["figures"].items()}
    assert values.pop("electricity") > 0
    assert set(values.values()) == {None}
    needs = [need for figure in found["footprint"]["figures"].values() for need in figure["needs"]]
    for setting in ("grid", "pue", "wue", "grid_water", "embodied", "lifetime"):
        assert any(need.startswith(f"energy.factors.{setting}") for need in needs), setting
    text = (tmp_path / manifest.folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"Not computed because [a-z_ ,()]*\bgrid\b", text)


def test_out_of_the_box_co2_is_known_with_bounds_and_says_on_what_it_rests(run):
    root, made, _, _, _ = run
    output = energy_facts(list(made.values()), root, look_up(FactorsConfig(), root, root))
    figures, total = output["footprint"]["figures"], output["total"]
    assert output["footprint"]["defaults"] == ["grid", "pue"]
    assert "world average, not your grid" in output["footprint"]["basis"]
    assert total["carbon"]["low"] < total["carbon"]["value"] < total["carbon"]["high"]
    assert total["carbon"]["value"] == figures["carbon_location"]["value"]
    assert {name for name in figures if name.startswith("carbon_") and figures[name]["value"] is None} == {
        "carbon_embodied"
    }
    assert all(row["carbon"]["value"] for row in output["stages"] if row["joules"])
    assert figures["sci"]["at_least"]


def test_sci_is_of_one_training_however_many_share_the_root(run, tmp_path):
    root, made, _, found, _ = run
    alone = found["energy"]["footprint"]["figures"]["sci"]
    text = (root / "energy.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    own = {line["interval"] for line in lines if line.get("stage") == "train"}
    copies = []
    for number in range(9):  # nine more trainings of the same size
        for line in lines:
            if line.get("interval") in own:
                marks = {**line["marks"], "artifact": f"train/{number:016x}"}
                copies.append({**line, "interval": f"{line['interval']}-{number}", "marks": marks})
    write_text(tmp_path / "energy.jsonl", text + "".join(f"{json.dumps(line)}\n" for line in copies))
    write_text(tmp_path / folder("train") / "metrics.jsonl", (root / folder("train") / "metrics.jsonl").read_text())
    output = energy_facts(list(made.values()), tmp_path, FACTORS)
    assert output["total"]["joules"] > 5 * found["energy"]["total"]["joules"]
    assert output["footprint"]["figures"]["sci"] == alone
    operation, embodied = 1850 / 3.6e6 * 1.5 * 100, 1e6 * 80 / (5 * 31_557_600)  # both attempts: 1,850 J in 80 s
    assert alone["value"] == pytest.approx((operation + embodied) / TOKENS * 1e9)


def test_other_factors_make_another_report_and_the_same_ones_find_it(run):
    root, made, manifest, _, _ = run
    same = ReportInputs(FACTORS)
    assert report(made, verdict_of(made, "PASS"), root, Runtime(root, make=False), extra=same) == manifest
    other = FACTORS.model_copy(update={"pue": None})
    again = report(made, verdict_of(made, "PASS"), root, Runtime(root), extra=ReportInputs(other))
    assert again.path != manifest.path
    assert Factors.model_validate(manifest.config["factors"]) == FACTORS


@pytest.mark.parametrize(("scope", "known"), [("node", True), ("process", False), (None, False)])
def test_only_energy_that_is_known_to_be_whole_nodes_has_their_embodied_carbon(run, scope, known):
    root, made, _, _, _ = run

    def scoped(manifest):
        energy = {**(manifest.run.get("energy") or {}), "scope": scope}
        return manifest.model_copy(update={"run": {**manifest.run, "energy": energy}})

    figure = energy_facts([*map(scoped, made.values())], root, FACTORS)["footprint"]["figures"]["carbon_embodied"]
    assert (figure["value"] is not None) == known


def test_hours_of_a_csv_weigh_the_energy_of_the_ledger(run, tmp_path):
    root, made, _, _, _ = run
    write_text(tmp_path / "grid.csv", "time,grams_per_kwh\n2025-12-31T23:00:00Z,900\n2026-01-01T00:00:00Z,40\n")
    config = FactorsConfig(by_hour={"path": "grid.csv", "source": "the operator", "year": 2026})
    factors = look_up(config, tmp_path, root)
    assert factors.by_hour.grams_per_kwh == (40.0,)
    found = energy_facts(list(made.values()), root, factors)["footprint"]
    assert found["factors"]["by_hour"]["value"] == pytest.approx(40)
    assert found["figures"]["carbon_location"]["value"] == pytest.approx(3099.75 / 3.6e6 * 40 * factors.pue.value)


def test_ledger_and_record_may_be_elsewhere(run, tmp_path):
    root, made, _, found, _ = run
    for path in ("energy.jsonl", f"{folder('train')}/metrics.jsonl"):
        write_text(tmp_path / path, (root / path).read_text(encoding="utf-8"))
    append_line(tmp_path / "energy.jsonl", json.dumps({"kind": "of a later release"}))
    output = energy_facts(list(made.values()), tmp_path, FACTORS)
    assert json.loads(json.dumps(output)) == found["energy"]


def test_methods_are_named_without_process_numbers():
    shared = ["shared: measured by pid 12", "shared: measured by pid 7"]
    assert meters(["RAPL"]) == "RAPL"
    assert meters(["RAPL", *shared]) == "RAPL; another command on the node metered some of the work"
    assert meters([]) == ""

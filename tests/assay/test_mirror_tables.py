"""The tables at W&B beside a run's charts have the numbers of report.json."""

from __future__ import annotations

import json

import pytest

from assay.wandb_tables import mirror_tables
from governance.manifest import Manifest
from governance.reports.facts.report_facts import facts
from governance.stage import Runtime
from pretrain.config.training import TrackingConfig
from pretrain.metrics.metrics_log import open_record
from pretrain.metrics.run_identity import RunIdentity
from pretrain.metrics.wandb_reader import read_offline
from tests.governance.test_reports_page import corpus, ledger, trained, verdict_of
from tests.pretrain.metrics.test_tracking import RECIPE

ROW = {
    "metric": "keep_ratio_adjusted", "stage": "clean", "instrument": "", "language": "en", "axis": "gender",
    "group": "women", "against": "men", "value": 0.5, "lower": 0.4, "upper": 0.6, "n": 100, "p": 0.001, "q": 0.001,
    "note": None,
}  # fmt: skip
TABLES = {
    "impact": [ROW, {**ROW, "group": "elders", "value": 1.0, "lower": 0.9, "upper": 1.1, "p": None, "q": None}],
    "tone": [],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A corpus with its bias audit, a finished training and a ledger with waste, and the report.json expected of it."""
    root = tmp_path_factory.mktemp("root")
    made = corpus(root)
    made["train"] = trained(root, made)
    ledger(root)
    bias = Manifest(stage="bias", version=1, key="b" * 64, config={}, inputs=(), outputs=(), stats={}, run={})
    (root / bias.folder).mkdir(parents=True, exist_ok=True)
    (root / bias.folder / "tables.json").write_text(json.dumps(TABLES))
    made["bias"] = bias
    return root, made, json.loads(json.dumps(facts(made, verdict_of(made, "PASS"), root)))


def rows_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_the_tables_are_those_of_the_report(run):
    root, made, found = run
    shown = mirror_tables(made, root)
    funnel = rows_of(shown["data/funnel"])
    assert len(funnel) == sum(1 + len(stage["by_source"]) for stage in found["funnel"])
    removed = rows_of(shown["data/removed"])
    for stage in found["funnel"]:
        for source, entry in [("(all)", stage), *stage["by_source"].items()]:
            [row] = [row for row in funnel if (row["stage"], row["source"]) == (stage["stage"], source)]
            assert {name: row[name] for name in row if name not in ("stage", "source")} == {
                name: entry[name] for name in ("documents_in", "documents_kept", "bytes_in", "bytes_kept")
            }
            gone = {row["reason"]: row["documents"] for row in removed
                    if (row["stage"], row["source"]) == (stage["stage"], source)}  # fmt: skip
            assert gone == entry["removed"]
    assert rows_of(shown["bias/impact"]) == found["bias"]["impact"]
    assert "bias/tone" not in shown
    assert [row["group"] for row in rows_of(shown["bias/stands_out"])] == ["women"]
    energy = found["energy"]
    assert {row["cause"]: row["joules"] for row in rows_of(shown["energy/wasted"])} == energy["wasted_by_cause"]
    assert energy["wasted_by_cause"]
    for row, stage in zip(rows_of(shown["energy/stages"]), energy["stages"], strict=True):
        assert {bound: row.pop(f"kwh_{bound}") for bound in stage["kwh"]} == stage.pop("kwh")
        stage.pop("carbon")
        assert row == stage
    for name in ("joules", "surviving", "wasted"):
        assert shown["energy/total_joules" if name == "joules" else f"energy/{name}_joules"] == energy["total"][name]
    for cause, joules in energy["wasted_by_cause"].items():
        assert shown[f"energy/wasted_joules/{cause}"] == joules


def test_wandb_holds_them(run, tmp_path, monkeypatch):
    """Every cell, read back from what wandb wrote."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, "unset")
    root, made, _ = run
    shown = mirror_tables(made, root)
    about = RunIdentity(RECIPE, "7" * 64, tables=lambda: mirror_tables(made, root))
    with open_record(tmp_path, TrackingConfig(mode="offline"), about, writes=True) as (record, _):
        record("step", 1, loss=1.0)
    summary = read_offline(tmp_path).summary
    tables = {name: value for name, value in shown.items() if hasattr(value, "rows")}
    assert {"data/funnel", "data/removed", "bias/impact", "energy/wasted"} <= tables.keys()
    [folder] = (tmp_path / "wandb").rglob("offline-run-*/files")
    for name, table in tables.items():
        held = json.loads((folder / summary[name]["path"]).read_bytes())
        assert (held["columns"], held["data"]) == (list(table.columns), [list(row) for row in table.rows])
    for name in shown.keys() - tables.keys():
        assert summary[name] == shown[name]


def test_a_corpus_alone_has_its_funnel_and_no_energy_is_unknown(tmp_path):
    made = {name: manifest for name, manifest in corpus(tmp_path).items() if name != "audit"}
    shown = mirror_tables(made, Runtime(tmp_path).root)
    assert rows_of(shown["data/funnel"])
    assert shown["energy/wasted_joules"] is None
    assert not [name for name in shown if name.startswith("bias/")]

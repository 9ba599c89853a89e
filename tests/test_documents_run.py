"""Documents, energy views, footprint and faults of real runs, by the command: their numbers are found again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_whole_way import assay, finished, project_copy  # noqa: F401

pytestmark = pytest.mark.slow


def test_the_documents_report_the_numbers_of_the_run(project_copy):  # noqa: F811
    root, own_key = project_copy / "root", ("--key", project_copy / "key.pem.pub")
    config = (project_copy / "run.toml", "--root", root)
    done = assay("report", *config, "--documents")
    assert done.returncode == 0, done.stderr
    [folder] = (root / "documents").iterdir()
    assert done.stdout.strip().endswith(f"documents: {folder}")
    [record] = (root / "train").glob("*/metrics.jsonl")
    [start] = [row for row in map(json.loads, record.read_text().splitlines()) if row["event"] == "start"]
    [manifest] = (root / "train").glob("*/manifest.json")
    flops = start["flops_per_token"] * json.loads(manifest.read_bytes())["stats"]["tokens"]
    components = json.loads((folder / "cyclonedx.json").read_bytes())["components"]
    [model] = [part for part in components if part["type"] == "machine-learning-model"]
    assert {"name": "assay:flops", "value": str(flops)} in model["properties"]
    assert f"{flops:.3e} FLOP" in (folder / "model_card.md").read_text()
    before = (folder / "manifest.json").read_bytes()
    assert assay("report", *config, "--documents").returncode == 0
    assert (folder / "manifest.json").read_bytes() == before
    assert assay("governance", "verify", root, "--deep", *own_key).returncode == 0
    (folder / "datasheet.md").write_text((folder / "datasheet.md").read_text().replace("120", "121"))
    done = assay("governance", "verify", root, *own_key)
    assert done.returncode == 65
    assert f"{folder.relative_to(root)}/datasheet.md" in done.stdout + done.stderr


def test_a_real_run_names_all_that_is_behind_its_checkpoint(project_copy):  # noqa: F811
    root = project_copy / "root"
    grid = 'energy.factors.grid={value=100, source="the operator", year=2025}'
    pue = 'energy.factors.pue={value=1.25, source="the operator", year=2025}'
    done = assay("report", project_copy / "run.toml", "--root", root, "--set", grid, "--set", pue)
    assert done.returncode == 0, done.stderr
    found = json.loads((Path(done.stdout.split("report: ")[1].strip()).parent / "report.json").read_bytes())["energy"]
    views, figure = found["views"], found["footprint"]["figures"]["carbon_location"]
    rows = views["rows"]
    assert views["missing"] == []
    stages = {part["artifact"].partition("/")[0]: part for part in views["parts"]}
    assert {"train", "encode", "tokenizer", "clean", "ingest"} <= set(stages)
    assert {part["from"] for part in views["parts"]} == {"ledger"}
    if found["total"]["unmeasured_seconds"]:  # another run of this node held the meter: then nothing may look complete
        assert all(row["joules"] is None or row["at_least"] for row in (rows["cumulative"], rows["fully_loaded"]))
        pytest.skip("another run's meter had this node while the run was made")
    order = ("marginal", "training", "cumulative", "cumulative_whole", "fully_loaded")
    joules = [rows[name]["joules"] for name in order]
    assert joules == sorted(joules)
    assert joules[0] > 0
    for row in rows.values():
        assert sum(row[name] for name in ("surviving", "wasted", "running")) == pytest.approx(row["joules"])
    assert figure["value"] == pytest.approx(found["total"]["joules"] / 3.6e6 * 1.25 * 100)
    assert figure["needs"] == []
    assert views["rates"]["per_document"]["joules"] > 0
    assert views["rates"]["per_nat"]["joules"] > 0


def test_a_csv_that_is_not_there_is_reported_before_the_first_stage(project_copy):  # noqa: F811
    by_hour = 'energy.factors.by_hour={path="nowhere.csv", source="the operator", year=2025}'
    done = assay("run", project_copy / "run.toml", "--root", project_copy / "other", "--set", by_hour)
    assert done.returncode == 78
    assert "nowhere.csv" in done.stderr
    assert not (project_copy / "other").exists()


REPORT = """
import sys
from assay.cli.main import main
status = main(sys.argv[1:])
print("heavy:", sorted({name.split(".")[0] for name in sys.modules} & {"torch", "great_expectations"}), status)
"""


def test_the_report_of_a_run_verifies_and_no_report_command_needs_a_heavy_library(project_copy):  # noqa: F811
    def command(*words, code=0):
        done = subprocess.run(
            [sys.executable, "-c", REPORT, "report", *map(str, words)], capture_output=True, text=True, check=True
        )
        assert f"heavy: [] {code}" in done.stdout, done.stdout + done.stderr
        return done.stdout

    root, config = project_copy / "root", project_copy / "run.toml"
    shutil.rmtree(root / "report")
    command(config, "--root", root, "--documents")
    output = command("verify", config, "--root", root)
    assert "all equal to the evidence" in output
    assert "model_card.md" in output
    assert "Settings that differ: 0" in command("compare", root, root, "--html", project_copy / "two.html")
    assert "PASS" in command("index", project_copy)
    [card] = root.glob("documents/*/model_card.md")
    steps = json.loads(next(root.glob("report/*/report.json")).read_bytes())["summary"]["steps"]
    card.write_text(card.read_text().replace(f"| {steps} |", f"| {steps + 1} |", 1))
    output = command("verify", root, code=65)
    assert "model_card.md: line " in output
    assert f"states {steps + 1}, the evidence gives {steps} in" in output


def test_a_run_that_diverges_is_reported_with_its_verdict(project_copy):  # noqa: F811
    root = project_copy / "root"
    known = {path.parent for path in root.glob("train/*/metrics.jsonl")} | set((root / "report").iterdir())
    config = (
        project_copy / "run.toml",
        "--root",
        root,
        "--set",
        "optim.learning_rate=1e30",
        "--set",
        "optim.weight_decay=0",
    )
    done = assay("run", *config)
    assert done.returncode == 1, done.stderr
    assert "the loss or the gradient is not finite" in done.stderr
    assert "Traceback" not in done.stderr
    [record] = [path for path in root.glob("train/*/metrics.jsonl") if path.parent not in known]
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    [verdict] = [line for line in lines if line["event"] == "diverged"]
    [folder] = set((root / "report").iterdir()) - known
    found = json.loads((folder / "report.json").read_bytes())
    assert found["begun"] == record.parent.relative_to(root).as_posix()
    [output] = found["faults"]["diverged"]
    assert output == {name: verdict[name] for name in output}
    assert "Training diverged and was stopped" in (folder / "report.html").read_text()
    done = assay("report", "verify", folder, "--key", project_copy / "key.pem.pub")
    assert done.returncode == 0, done.stdout + done.stderr
    assert assay("report", *config).stdout.strip() == f"report: {folder / 'report.html'}"  # found: no file has grown

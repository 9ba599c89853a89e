"""The documents of a run that was trained, by the command: the run's own numbers, found again, and verified."""

import json

import pytest

from tests.test_whole_way import assay, finished, project_copy  # noqa: F401

pytestmark = pytest.mark.slow


def test_the_documents_tell_the_numbers_of_the_run(project_copy):  # noqa: F811
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

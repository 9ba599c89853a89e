"""The report on a cluster's jobs: causes of attempts, and two meters side by side."""

import json

from governance.files import append_line
from governance.reports.facts.cluster_jobs import cluster, cluster_facts


def said(root, unit, event, started, **values):
    append_line(
        root / "slurm" / "attempts" / f"{unit}.jsonl", json.dumps({"event": event, "started": started, **values})
    )


def submitted(root):
    for job, name in (("12", "clean"), ("13", "train")):
        append_line(root / "slurm" / "jobs.jsonl", json.dumps({"job": job, "name": name}))


def test_a_run_of_one_machine_has_no_cluster(tmp_path):
    assert cluster_facts(tmp_path) is None
    assert "not submitted to a cluster" in str(cluster({"cluster": None}))


def test_causes_are_counted_by_job(tmp_path):
    submitted(tmp_path)
    for task in (1, 2):
        said(tmp_path, f"12_{task}", "started", "1")
        said(tmp_path, f"12_{task}", "ended", "1", outcome="failed", cause="the <disk> is full")
        said(tmp_path, f"12_{task}", "started", "2")
        said(tmp_path, f"12_{task}", "ended", "2", outcome="done", cause="done")
    said(tmp_path, "13", "started", "3")
    said(tmp_path, "13", "started", "4")  # still running
    said(tmp_path, "99", "started", "5")  # of no job of this root
    found = cluster_facts(tmp_path)
    assert found["attempts"] == 6
    assert found["causes"] == [
        {"job": "clean", "cause": "the <disk> is full", "count": 2},
        {"job": "train", "cause": "killed without a record of its end, most often with its node", "count": 1},
    ]
    page = str(cluster({"cluster": found}))
    assert "the &lt;disk&gt; is full" in page
    assert "was not read" in page
    assert "no line is signed by itself" in page  # nothing else of the report says on whose word the causes are


def test_both_meters_and_their_difference_are_shown(tmp_path):
    submitted(tmp_path)
    values = {"asked": "2026-11-25T10:00:00Z", "core_seconds": 7200, "jobs": {}, "ours": 1000.0, "slurm": 1250}
    path = tmp_path / "slurm" / "accounting.jsonl"
    append_line(path, json.dumps(values))
    page = str(cluster({"cluster": cluster_facts(tmp_path)}))
    assert "+25% of our meters" in page
    assert "2.00 core hours" in page
    append_line(path, json.dumps({**values, "slurm": None}))  # the newest answer is shown
    assert "unknown" in str(cluster({"cluster": cluster_facts(tmp_path)}))


def test_what_was_submitted_and_the_edits_that_were_taken_are_shown(tmp_path):
    submitted(tmp_path)
    assert cluster_facts(tmp_path)["submitted"] is None
    line = {
        "code": {"sha256": "c" * 64, "version": "1.2"}, "edits": "taken", "key": "k",
        "files": {"/shared/run.toml": {"kept": "0-run.toml", "sha256": "a" * 64}}, "submission": 2, "time": "now",
    }  # fmt: skip
    for number in (1, 2):
        append_line(tmp_path / "slurm" / "submitted.jsonl", json.dumps({**line, "submission": number}))
        edit = {"job": str(number), "name": "/shared/run.toml", "sha256": "b" * 64, "time": "then"}
        append_line(tmp_path / "slurm" / "taken.jsonl", json.dumps(edit))
    found = cluster_facts(tmp_path)
    assert found["submitted"]["submission"] == 2
    assert found["submitted"]["taken"] == [{"name": "run.toml", "sha256": "b" * 64}]
    page = str(cluster({"cluster": found}))
    assert "edited after submission" in page
    assert all(digest[:16] in page for digest in ("a" * 64, "b" * 64, "c" * 64))

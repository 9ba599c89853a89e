"""Jobs that the cluster would refuse are refused before anything is queued, in Slurm's words, with the fix."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.bed import change

pytestmark = pytest.mark.cluster


def refused(bed, folder, *pairs, root="root", **environment):
    change(folder, *pairs)
    done = bed.assay("slurm", "submit", folder / "run.toml", "--root", folder / root, **environment)
    assert done.returncode != 0
    assert bed.queued() == []
    assert "Traceback" not in done.stderr
    assert not (folder / root / "slurm" / "jobs.jsonl").exists()
    return done


def test_the_controller_accepts_every_script(bed, fresh):
    done = bed.assay("slurm", "render", fresh / "run.toml", "--root", fresh / "root")
    assert done.returncode == 0, done.stderr
    scripts = done.stdout.split("# ---- ")[1:]
    assert {script.split()[0] for script in scripts} >= {"ingest", "ingest-join", "data", "audit", "train", "report"}
    for script in scripts:
        name, _, text = script.partition("\n")
        path = fresh / f"{name.split()[0]}.sbatch"
        path.write_text(text)
        words = ["sbatch", "--test-only", str(path)]
        tried = subprocess.run(words, capture_output=True, text=True, env=bed.environment, check=False)
        assert tried.returncode == 0, f"{name}: {tried.stderr}"
        assert "to start at" in tried.stderr
    assert bed.queued() == []


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (('partition = "low"', 'partition = "nowhere"'), ["nowhere", "main", "invalid partition"]),
        (('partition = "low"', 'account = "strangers"'), ["strangers", "tests", "Invalid account"]),
        (('\ntime_limit = "20"', '\ntime_limit = "2:00:00"'), ["time_limit", "2:00:00", "1:00:00", "time limit"]),
        (
            ("nodes = 2", "nodes = 2\ngpus_per_node = 9\nprocesses_per_node = 1"),
            ["gpus_per_node", "9", "2", "node configuration"],
        ),
        (("nodes = 2", "nodes = 6"), ["nodes = 6", "3", "ode count"]),
        (("nodes = 2", 'nodes = 2\nmemory = "400G"'), ["memory", "400G", "64,000"]),
    ],
    ids=["partition", "account", "time", "gpus", "nodes", "memory"],
)
def test_what_the_cluster_has_not(bed, fresh, pair, words):
    done = refused(bed, fresh, pair)
    assert done.returncode == 69, done.stderr
    assert all(word.lower() in done.stderr.lower() for word in ["nothing was queued", *words]), done.stderr


def test_drained_nodes_are_a_warning(bed, fresh):
    for node in bed.nodes[1:]:
        bed.slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        done = bed.assay("slurm", "submit", fresh / "run.toml", "--root", fresh / "root")
        assert done.returncode == 0, done.stderr
        assert "train cannot start now" in done.stderr
        assert bed.nodes[1] in done.stderr
        done = bed.assay("slurm", "cancel", fresh / "run.toml", "--root", fresh / "root")
        assert done.returncode == 0, done.stderr
    finally:
        for node in bed.nodes[1:]:
            bed.slurm("scontrol", "update", f"nodename={node}", "state=resume")


def test_what_training_would_refuse(bed, fresh):
    done = refused(bed, fresh, ("micro_batch_size = 2", "micro_batch_size = 5"))
    assert done.returncode == 78, done.stderr
    assert "5 x 2 = 10" in done.stderr
    assert not (fresh / "root").exists()


def test_no_slurm_here(bed, fresh, tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("env", "git", "uname"):  # other tools that a run needs
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    done = refused(bed, fresh, PATH=f"{Path(sys.executable).parent}:{tmp_path / 'bin'}")
    assert done.returncode == 69, done.stderr
    assert "not on this machine" in done.stderr
    assert "login node" in done.stderr


def test_a_folder_that_the_nodes_do_not_share(bed, fresh):
    root = bed.folder / "unshared" / "root"
    done = refused(bed, fresh, root=root)
    assert done.returncode == 69, done.stderr
    assert str(root) in done.stderr
    assert "shared file system" in done.stderr

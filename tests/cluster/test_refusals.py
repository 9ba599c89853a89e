"""Jobs that the cluster would refuse are refused before anything is queued, in Slurm's words, with the fix."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from assay.cli.main import main
from tests.cluster.bed import change
from tests.cluster.conftest import NODE_MB

pytestmark = pytest.mark.cluster


@pytest.fixture
def typed(bed, capsys):
    """`typed(words...)`: exit status and output of a command on the login node, in this process."""

    def run(*words, **environment):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**bed.environment, **environment}.items():
                patch.setenv(name, value)
            return main([str(word) for word in words]), capsys.readouterr()

    return run


@pytest.fixture
def refused(bed, fresh, typed):
    """`refused(changes...)`: exit status and message of a submission that queues nothing."""

    def submit(*pairs, root=fresh / "root", **environment):
        change(fresh, *pairs)
        code, shown = typed("slurm", "submit", fresh / "run.toml", "--root", root, **environment)
        assert code != 0
        assert bed.queued() == []
        assert "Traceback" not in shown.err
        assert not (root / "slurm" / "jobs.jsonl").exists()
        return code, shown.err

    return submit


def test_the_controller_accepts_every_script(bed, fresh, typed):
    code, shown = typed("slurm", "render", fresh / "run.toml", "--root", fresh / "root")
    assert code == 0, shown.err
    scripts = shown.out.split("# ---- ")[1:]
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
        (("nodes = 2", 'nodes = 2\nmemory = "400G"'), ["memory", "400G", f"{NODE_MB:,}"]),
    ],
    ids=["partition", "account", "time", "gpus", "nodes", "memory"],
)
def test_what_the_cluster_has_not(refused, pair, words):
    code, message = refused(pair)
    assert code == 69, message
    assert all(word.lower() in message.lower() for word in ["nothing was queued", *words]), message


def test_drained_nodes_are_a_warning(bed, fresh, typed):
    for node in bed.nodes[1:]:
        bed.slurm("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    try:
        code, shown = typed("slurm", "submit", fresh / "run.toml", "--root", fresh / "root")
        assert code == 0, shown.err
        assert "train cannot start now" in shown.err
        assert bed.nodes[1] in shown.err
        code, shown = typed("slurm", "cancel", fresh / "run.toml", "--root", fresh / "root")
        assert code == 0, shown.err
    finally:
        for node in bed.nodes[1:]:
            bed.slurm("scontrol", "update", f"nodename={node}", "state=resume")


def test_what_training_would_refuse(fresh, refused):
    code, message = refused(("micro_batch_size = 2", "micro_batch_size = 5"))
    assert code == 78, message
    assert "5 x 2 = 10" in message
    assert not (fresh / "root").exists()


def test_no_slurm_here(refused, tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("env", "git", "uname"):  # other tools that a run needs
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    code, message = refused(PATH=f"{Path(sys.executable).parent}:{tmp_path / 'bin'}")
    assert code == 69, message
    assert "not on this machine" in message
    assert "login node" in message


def test_a_folder_that_the_nodes_do_not_share(bed, refused):
    root = bed.folder / "unshared" / "root"
    code, message = refused(root=root)
    assert code == 69, message
    assert str(root) in message
    assert "shared file system" in message

"""What a first run on a cluster meets: containers, a shell that leaks, blind nodes, options, cores, edits."""

import os
import subprocess
from pathlib import Path

import pytest

from slurm.config import SlurmConfig
from slurm.render import Seen, render
from tests.slurm.test_scripts import Node, jobs_of


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_a_container_holds_the_command_and_sees_the_run_and_what_that_reads():
    """Folders within another that is mounted are not mounted again; variables are set inside."""
    seen = Seen((Path("/elsewhere/corpus"), Path("/shared/policies"), Path("/keys")), {"XDG_CONFIG_HOME": "/keys"})
    pyxis = SlurmConfig(container="img", container_runtime="pyxis", container_mounts=("/data",))
    file, root = Path("/shared/run.toml"), Path("/shared/run")
    text = render(jobs_of(pyxis)["ingest"], file, root, pyxis, seen)
    mounts = "/shared:/shared,/data:/data,/elsewhere/corpus:/elsewhere/corpus,/keys:/keys"
    assert f"--container-image=img '--container-mounts={mounts}'" in text
    assert "inside=(env XDG_CONFIG_HOME=/keys)" in text
    apptainer = SlurmConfig(container="img.sif", container_runtime="apptainer", options=("--gres=gpu:h100:2",))
    text = render(jobs_of(apptainer)["train"], file, root, apptainer, Seen((), seen.variables))
    assert "inside=(apptainer exec --nv --bind /shared img.sif env XDG_CONFIG_HOME=/keys)" in text
    assert "inside=()" in render(jobs_of(SlurmConfig())["train"], file, root, SlurmConfig())


def test_a_directive_quotes_what_would_end_it():
    config, root = SlurmConfig(options=("--comment=grant #12",)), Path("/shared/#1/run")
    text = render(jobs_of(config, root)["train"], Path("/shared/run.toml"), root, config)
    assert '#SBATCH --output="/shared/#1/run/slurm/logs/%x-%j.log"' in text
    assert '#SBATCH --comment="grant #12"' in text


def test_the_shell_that_submitted_does_not_leak_in(node, tmp_path, monkeypatch):
    names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_EXPORT_ENV")
    for name in names:
        monkeypatch.setenv(name, "NONE")
    node.program("assay", f'for name in {" ".join(names)}; do echo "${{!name-unset}}"; done > {tmp_path}/seen')
    (tmp_path / "site.sh").write_text("export MASTER_ADDR=here\n")
    for site, address in (("", "unset"), (str(tmp_path / "site.sh"), "here")):
        assert node.run("audit", config=SlurmConfig(environment=site)).returncode == 0
        assert (tmp_path / "seen").read_text().split() == [address, *["unset"] * 5]


def test_a_node_that_sees_no_machinery_is_left_out_while_there_are_others(node):
    script = node.root / "slurm" / "data.sbatch"
    node.program("scontrol", f'echo "$*" >> {node.asked}; [ "$1" != show ] || echo "ExcNodeList=n9"')
    node.program("sinfo", "printf 'n1\nn2\n'")
    config = SlurmConfig(retries=1)
    text = render(jobs_of(config, node.root)["data"], Path("/shared/run.toml"), node.root, config)
    lines = ["for machinery in /nowhere; do" if "for machinery" in line else line for line in text.splitlines()]
    script.write_text("\n".join(lines) + "\n")
    for attempt, asked in ((0, ["show job 7", "requeue 7", "update jobid=7 ExcNodeList=n9,n1"]), (1, [])):
        node.asked.unlink(missing_ok=True)
        here = {"PATH": f"{node.programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
        here["SLURM_RESTART_COUNT"] = str(attempt)
        done = subprocess.run(["bash", str(script)], env=here, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 66
        assert "does not see" in done.stderr
        assert node.requests == asked

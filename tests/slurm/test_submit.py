"""The job script: valid before and after it is filled in, faithful to the configuration, honest about refusals."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.errors import ClusterError, MissingInput
from slurm.submit import SlurmConfig, render, status, submit

TEMPLATE = Path(__file__).parents[2] / "slurm" / "run.sbatch"


def bash_accepts(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def test_template_is_valid_bash_unfilled():
    assert bash_accepts(TEMPLATE.read_text())
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "--shell=bash", str(TEMPLATE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\x00\n\r"), min_size=1, max_size=20)


@given(name=NAMES, folder=NAMES)
def test_any_path_survives_quoting(name, folder):
    if name in (".", "..") or folder in (".", ".."):
        return
    config = Path("/runs") / folder / f"{name}.toml"
    text = render(config, Path("/runs") / folder, SlurmConfig())
    [line] = [line for line in text.split("\n") if line.startswith("config=")]
    assert shlex.split(line.removeprefix("config=")) == [str(config)]
    assert bash_accepts(text)


def test_directives_follow_the_section():
    section = SlurmConfig(
        partition="gpu", nodes=4, gpus_per_node=8, memory="64G", time_limit="02:00:00", signal_seconds=90
    )
    text = render(Path("/c/big.toml"), Path("/r"), section)
    directives = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    wanted = {"--partition=gpu", "--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--mem=64G", "--requeue"}
    assert wanted | {"--signal=USR1@90", "--time=02:00:00"} <= set(directives)
    assert not [line for line in directives if line.startswith(("--account", "--qos", "--constraint"))]


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="this machine has Slurm")
def test_without_slurm_the_script_is_kept_and_the_refusal_is_clear(tmp_path):
    with pytest.raises(ClusterError, match="sbatch: not on this machine"):
        submit(Path("/c/x.toml"), tmp_path, SlurmConfig())
    assert (tmp_path / "slurm" / "run.sbatch").exists()
    with pytest.raises(MissingInput, match="no job was submitted"):
        status(tmp_path)

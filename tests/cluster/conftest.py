"""A cluster for the tests of each process; they are skipped, with the reason, where none is available."""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.bed import CONF, HERE, REPOSITORY, SCRIPT, Bed, change
from tests.conftest import CONFIG as LOCAL
from tests.conftest import write_run, write_tales

NODES = 3
NODE_MB = 96_000
"""Memory of a node: a job gets 3,000 for each of its cores, and one that takes more is killed.

A rank whose torch was built for CUDA takes 700, and a child of it counts as much until it runs its own program.
"""
CHANGES = {
    'paths = ["*.jsonl"]\n': 'paths = ["tales/*.jsonl"]\n',
    "[data.tokenizer]": "[data.ingest]\nshard_bytes = SHARD_BYTES\n\n[data.tokenizer]",
    "[train]": '[train]\nprecision = "fp32"',
    "global_batch_size = 4": "global_batch_size = 12",
    "steps = 12\nvalidate_every_steps = 6": "steps = 100\nvalidate_every_steps = 0",
    "every_steps = 4": "every_steps = 5",
    "[engine]\nmicro_batch_size = 4": "[engine]\nzero_stage = 1\nmicro_batch_size = 2",
}
"""Of the run that the other tests make: a file is a shard, and twelve rows are shared by one, two or three nodes."""
SLURM = """
[slurm]
partition = "low"
nodes = 2
cpus_per_task = 1
time_limit = "20"
data_time_limit = "20"
shards_per_task = 3
retries = 3
environment = "environment.sh"
"""
CONFIG = functools.reduce(lambda text, change: text.replace(*change), CHANGES.items(), LOCAL) + SLURM


def _why_not():
    """The reason why there can be no cluster here; empty where there can be one."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in ("slurmctld", "slurmd", "slurmdbd", "sbatch", "munged", "mariadbd", "ip")
               if shutil.which(name, path=path) is None]  # fmt: skip
    if missing:
        return f"not installed: {', '.join(missing)} (tests/cluster/testbed.sh install)"
    if os.getuid() != 0:
        return "needs root: nodes have networks and process trees of their own"
    probe = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "hostname", "probe"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


@pytest.fixture(scope="session")
def bed(shared):
    if why := _why_not():
        pytest.skip(f"no Slurm cluster: {why}")
    folder = Path(tempfile.mkdtemp(prefix="bed-c"))
    prefix = f"bed{os.getpid()}-"  # another cluster may be up on this machine
    words = ["--nodes", str(NODES), "--cpus", "16", "--mem", str(NODE_MB), "--prefix", prefix]
    words += [word for line in CONF for word in ("--conf", line)]
    down = ["bash", str(SCRIPT), "down", str(folder)]
    small = folder / "small"  # a disk that a test can fill, mounted before the nodes start, so that they see it
    try:
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "small", str(small)], check=True)
        done = subprocess.run(
            ["bash", str(SCRIPT), "up", str(folder), *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        yield Bed(folder, tuple(f"{prefix}{number}" for number in range(1, NODES + 1)))
    finally:
        subprocess.run(down, check=False, timeout=180)
        subprocess.run(["umount", "--lazy", str(small)], check=False)
        subprocess.run([*down, "--purge"], check=False, timeout=180)


@pytest.fixture(autouse=True)
def _whole(request):
    """Each test begins with all nodes up and idle, and leaves no job behind."""
    if "bed" not in request.fixturenames:
        yield
        return
    bed = request.getfixturevalue("bed")
    bed.settle()
    yield
    for part in ("munged", "mariadbd", "slurmdbd", "slurmctld", *bed.nodes):
        bed("start", part)
    for node in bed.nodes:
        bed("heal", node)
    for number in {number.partition("_")[0] for number in bed.queued()}:
        bed.slurm("scancel", number, check=False)


def write_project(folder, files=4, documents=240):
    """A run's file, its corpus, its policy, and the script that its jobs source."""
    (folder / "tales").mkdir(parents=True)
    (folder / "faults").mkdir()
    for number in range(files):
        each = range(number * documents // files, (number + 1) * documents // files)
        write_tales(folder / "tales" / f"{number:03d}.jsonl", each)
    largest = max(path.stat().st_size for path in (folder / "tales").iterdir())  # a file is a shard
    write_run(folder, CONFIG.replace("SHARD_BYTES", str(largest)))
    shutil.copy(REPOSITORY / "configs" / "policy.toml", folder / "policy.toml")
    lines = {
        "PYTHONPATH": f"{HERE / 'hook'}:{REPOSITORY}",
        "ASSAY_TEST_FAULTS": folder / "faults",
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "XDG_CONFIG_HOME": os.environ["XDG_CONFIG_HOME"],
        "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"],
        "OMP_NUM_THREADS": 1,
        "OMP_WAIT_POLICY": "PASSIVE",  # both nodes are on this machine: a thread that waits leaves its core
        "ASSAY_PAUSE_SECONDS": 3,
    }
    (folder / "environment.sh").write_text("".join(f'export {name}="{value}"\n' for name, value in lines.items()))
    return folder


@pytest.fixture(scope="session")
def shared(own_keys, tmp_path_factory):
    """A folder of all processes of pytest, with the keys and heads of all: each copies the run that one made."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        yield folder


@pytest.fixture(scope="session")
def local(shared):
    """The same run on this machine, without a cluster, unbroken: its digests and losses count."""
    folder = shared / "local" / "project"
    with (shared / "local.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it, the other waits
        if list(folder.glob("root/report/*/report.json")):
            return folder
        shutil.rmtree(shared / "local", ignore_errors=True)
        write_project(folder)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        words = ["run", str(folder / "run.toml"), "--root", str(folder / "root"), "--data-workers", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "pretrain", *words], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def prepared(local, tmp_path):
    """The project with its corpus made and its gate passed, and no training yet; its graph has no arrays."""
    folder = tmp_path / "project #1"  # a name that a directive must quote
    shutil.copytree(local, folder)
    change(folder, ("shards_per_task = 3", "shards_per_task = 100"))
    for made in ("train", "checkpoint", "report"):
        shutil.rmtree(folder / "root" / made)
    lines = (folder / "environment.sh").read_text()
    (folder / "environment.sh").write_text(lines.replace(str(local), str(folder)))
    return folder


@pytest.fixture
def fresh(tmp_path):
    """The project before anything is made."""
    return write_project(tmp_path / "project")

"""First contact of a run with a cluster: containers, a leaking shell, blind nodes, options, cores, edits."""

import os
import subprocess
from pathlib import Path

import pytest

from governance.errors import ConfigError
from slurm import commands, frozen
from slurm.config import SlurmConfig
from slurm.frozen import freeze, in_words, refuse_edits, refuse_unasked
from slurm.render import ContainerMounts, render
from slurm.submit_preflight import training_nodes, unavailable, with_cores
from tests.slurm.test_scripts import ClusterNode, jobs_of


@pytest.fixture
def node(tmp_path):
    return ClusterNode(tmp_path)


def test_a_container_holds_the_command_and_sees_the_run_and_what_that_reads():
    """Folders within another mounted one are not mounted again; variables are set inside."""
    seen = ContainerMounts(
        (Path("/elsewhere/corpus"), Path("/shared/policies"), Path("/keys")), {"XDG_CONFIG_HOME": "/keys"}
    )
    pyxis = SlurmConfig(container="img", container_runtime="pyxis", container_mounts=("/data",))
    file, root = Path("/shared/run.toml"), Path("/shared/run")
    text = render(jobs_of(pyxis)["ingest"], file, root, pyxis, seen)
    mounts = "/shared:/shared,/data:/data,/elsewhere/corpus:/elsewhere/corpus,/keys:/keys"
    assert f"--container-image=img '--container-mounts={mounts}'" in text
    assert "inside=(env XDG_CONFIG_HOME=/keys)" in text
    apptainer = SlurmConfig(container="img.sif", container_runtime="apptainer", options=("--gres=gpu:h100:2",))
    text = render(jobs_of(apptainer)["train"], file, root, apptainer, ContainerMounts((), seen.variables))
    assert "inside=(apptainer exec --nv --bind /shared img.sif env XDG_CONFIG_HOME=/keys)" in text
    assert "inside=()" in render(jobs_of(SlurmConfig())["train"], file, root, SlurmConfig())


def test_a_directive_quotes_what_would_end_it():
    config, root = SlurmConfig(options=("--comment=grant #12",)), Path("/shared/#1/run")
    text = render(jobs_of(config, root)["train"], Path("/shared/run.toml"), root, config)
    assert "#SBATCH --output=/dev/null" in text
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


@pytest.mark.parametrize("lacks", ["program", "python"])
def test_a_node_that_cannot_run_the_attempt_is_excluded_while_there_are_others(node, lacks):
    script = node.root / "slurm" / "data.sbatch"
    node.program("scontrol", f'echo "$*" >> {node.calls}; [ "$1" != show ] || echo "ExcNodeList=n9"')
    node.program("sinfo", "printf 'n1\nn2\n'")
    config = SlurmConfig(retries=1)
    text = render(jobs_of(config, node.root)["data"], Path("/shared/run.toml"), node.root, config)
    lines = [f"for {lacks} in /nowhere; do" if f"for {lacks} in" in line else line for line in text.splitlines()]
    script.write_text("\n".join(lines) + "\n")
    for attempt, calls in ((0, ["show job 7", "requeue 7", "update jobid=7 ExcNodeList=n9,n1"]), (1, [])):
        node.calls.unlink(missing_ok=True)
        here = {"PATH": f"{node.programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
        here["SLURM_RESTART_COUNT"] = str(attempt)
        done = subprocess.run(["bash", str(script)], env=here, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 66
        assert "does not see" in done.stderr
        assert "comment=assay: n1 does not see" in node.requests[0]
        assert node.requests[1:] == calls


@pytest.mark.parametrize(
    ("field", "option", "message"),
    [
        ("options", "--partition=x", "set slurm.partition instead"),
        ("options", "--part=x", "set slurm.partition instead"),
        ("options", "--gpus=8", "set slurm.gpus_per_node instead"),
        ("options", "--dependency=afterok:1", "set slurm.chain instead"),
        ("data_options", "--output=x", "the program sets --output itself"),
        ("options", "-N2", "by its long name"),
        ("options", "--comment=a\nb", "by its long name"),
        ("srun_options", "--kill-on-bad-exit=1", "the program sets --kill-on-bad-exit itself"),
        ("srun_options", "--container-image=x", "set slurm.container instead"),
    ],
)
def test_an_option_that_a_field_says_or_the_program_sets_is_refused(field, option, message):
    with pytest.raises(ValueError, match=message):
        SlurmConfig(**{field: (option,)})


def test_what_is_no_field_is_passed_on():
    """A typed gres replaces the plain number; the evaluation requests one of that type."""
    more = ("--gres=gpu:h100:8", "--exclusive", "--licenses=fast:2", "--switches=1@10", "--network=sn_all", "--nice=5")
    config = SlurmConfig(gpus_per_node=8, options=more, data_options=("--wckey=x",), srun_options=("--cpu-bind=cores",))
    jobs = jobs_of(config)
    assert set(more) <= set(jobs["train"].options)
    assert not any(option.startswith("--gpus-per-node") for option in jobs["train"].options)
    assert {"--gres=gpu:h100:1", "--exclusive"} <= set(jobs["evaluate"].options)
    assert "--wckey=x" in jobs["audit"].options
    assert not set(more) & set(jobs["clean"].options)
    text = render(jobs["train"], Path("/shared/run.toml"), Path("/shared/run"), config)
    assert "rank_options=(--cpu-bind=cores)" in text


NODES = [
    commands.ClusterNode("n1", ("gpu",), 64, 500_000, 8, "IDLE"),
    commands.ClusterNode("n2", ("gpu", "cpu"), 48, 500_000, 4, "DOWN*+DRAIN"),
    commands.ClusterNode("n3", ("cpu",), 16, 64_000, 0, "MIXED"),
]
PARTITIONS = [commands.Partition("gpu", "infinite", 2, 2, False), commands.Partition("cpu", "infinite", 2, 2, True)]


@pytest.mark.parametrize(
    ("settings", "cores"),
    [
        ({"partition": "gpu", "gpus_per_node": 8}, 8),  # of n1 alone
        ({"partition": "gpu", "gpus_per_node": 4}, 8),  # 4 of 8 GPUs: half of n1's 64 cores; n2 has 48 for 4
        ({"partition": "gpu", "gpus_per_node": 4, "processes_per_node": 2}, 16),
        ({}, 16),  # one process on a node of the default partition, the smallest of which has 16
        ({"processes_per_node": 5}, 3),
        ({"cpus_per_task": 6}, 6),
        ({"partition": "gpu", "gpus_per_node": 16}, 0),  # no node fits: another check refuses that
    ],
)
def test_a_rank_gets_its_share_of_the_smallest_node_and_that_is_reported(settings, cores):
    config, words = with_cores(SlurmConfig(**settings), PARTITIONS, NODES)
    assert config.cpus_per_task == cores
    assert (f"each rank gets {cores} cores" in words) == (cores > 0 and "cpus_per_task" not in settings)


def test_nodes_that_are_not_there_now_are_known():
    assert [node.name for node in unavailable(NODES)] == ["n2"]
    assert [node.name for node in training_nodes(SlurmConfig(memory="100G"), PARTITIONS, NODES)] == ["n2"]


@pytest.fixture
def submitted(tmp_path):
    """A root with a frozen run's file and policy."""
    (tmp_path / "run.toml").write_text("steps = 1\n")
    (tmp_path / "policy.toml").write_text("name = 'a'\n")
    files = [tmp_path / "run.toml", tmp_path / "policy.toml"]

    def submit(taken):
        code = {"version": "1.0", "sha256": frozen.code_digest()}
        freeze(tmp_path, 1, files, "k" * 64, code, taken=taken)

    submit(False)
    return tmp_path, submit


def test_an_edit_is_refused_named_and_can_be_undone(submitted):
    root, _ = submitted
    refuse_edits(root, "k" * 64, first=True)
    (root / "run.toml").write_text("steps = 2\n")
    with pytest.raises(ConfigError, match=r"(?s)run.toml: was edited since; .*submitted/1/0-run.toml.*--take-edits"):
        refuse_edits(root, "k" * 64, first=True)
    with pytest.raises(ConfigError, match=r"(?s)run.toml: was edited.*assay slurm retry X --take-edits"):
        refuse_unasked(root, "X")
    assert any("run.toml: was edited since" in line for line in in_words(root))
    (root / "run.toml").write_bytes((root / "slurm" / "submitted" / "1" / "0-run.toml").read_bytes())
    refuse_edits(root, "k" * 64, first=True)
    refuse_unasked(root, "X")


def test_an_edit_is_taken_on_purpose_and_written_down(submitted, caplog):
    root, submit = submitted
    submit(True)
    (root / "policy.toml").unlink()
    (root / "run.toml").write_text("steps = 2\n")
    refuse_edits(root, "k" * 64, first=True)
    assert "are accepted, as requested" in caplog.text
    assert any("edit taken: run.toml" in line for line in in_words(root))


def test_a_program_that_was_edited_is_refused_by_the_first_rank(submitted, monkeypatch):
    root, _ = submitted
    monkeypatch.setattr("slurm.frozen.code_digest", lambda: "0" * 64)
    refuse_edits(root, "k" * 64, first=False)
    with pytest.raises(ConfigError, match=r"the program at .* is not the one that submitted"):
        refuse_edits(root, "k" * 64, first=True)


def test_the_digest_of_the_program_reads_a_file_again_where_it_changed(tmp_path, monkeypatch):
    """An edit of equal length is seen; a second call without one reads no file."""
    monkeypatch.setattr(frozen, "__file__", str(tmp_path / "slurm" / "frozen.py"))
    for package in frozen._PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "module.py").write_text("x = 1\n")
    reads, real = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), real(path))[1])
    before = frozen.code_digest()
    assert (frozen.code_digest(), len(reads)) == (before, len(frozen._PACKAGES))
    edited = tmp_path / "pretrain" / "module.py"
    was = edited.stat()
    edited.write_text("x = 2\n")
    os.utime(edited, ns=(was.st_atime_ns, was.st_mtime_ns))  # the time of its last change of state remains
    assert frozen.code_digest() != before
    assert reads[len(frozen._PACKAGES) :] == [edited]


@pytest.mark.parametrize("taken", [False, True])
def test_another_signing_key_is_refused_even_where_edits_are_taken(submitted, taken):
    root, submit = submitted
    submit(taken)
    for key in ("", "x" * 64):
        with pytest.raises(ConfigError, match=r"(?s)signing key .* Set governance.signing_key"):
            refuse_edits(root, key, first=False)

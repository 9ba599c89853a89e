"""Refusals before anything is queued, with Slurm's own words and the fix; and the site's defaults."""

import os
from pathlib import Path

import pytest

from governance.errors import ClusterError, ConfigError
from slurm import commands
from slurm.config import SITE_VARIABLE, SlurmConfig, minutes, with_site
from slurm.graph import PlannedRun, plan
from slurm.submit import JobRequest, keep_scripts, submit
from slurm.submit_preflight import check_settings, file_system_of, megabytes, refuse

SCONTROL = """
case "$*" in
  *partition*)
    echo "PartitionName=short AllowAccounts=ALL Default=YES MaxNodes=UNLIMITED MaxTime=01:00:00 TotalNodes=2 State=UP"
    echo "PartitionName=long AllowAccounts=ALL Default=NO MaxNodes=1 MaxTime=7-00:00:00 TotalNodes=2 State=UP" ;;
  *node*)
    echo "NodeName=n1 CPUTot=8 RealMemory=64000 Gres=gpu:a100:2(S:0),nvme:1 Partitions=short,long State=IDLE"
    echo "NodeName=n2 CPUTot=8 RealMemory=64000 Gres=(null) Partitions=short State=IDLE" ;;
  *config*) echo "MaxArraySize            = 1001" ;;
esac
"""
SBATCH = """
for word; do case $word in
  --partition=nowhere) echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1 ;;
  --test-only) test=yes ;;
esac; done
[ -n "$test" ] || echo "$*" >> QUEUED
[ ! -e REFUSAL ] || { cat REFUSAL >&2; exit 1; }
"""


SRUN = """
while [[ $1 == -* ]]; do shift; done
[ ! -e BUSY ] || { echo "Requested nodes are busy" >&2; exit 1; }
"$@"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder of stand-ins for Slurm's tools, first on PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    bodies = {
        "scontrol": SCONTROL,
        "sbatch": SBATCH.replace("QUEUED", f"{tmp_path}/queued").replace("REFUSAL", f"{tmp_path}/refusal"),
        "sacctmgr": f"case $* in *qos*) cat {tmp_path}/qos 2>/dev/null ;; *) echo tests ;; esac; true",
        "srun": SRUN.replace("BUSY", f"{tmp_path}/busy"),
    }
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


def look(cluster, root=None, sources=(), **settings):
    config = SlurmConfig(**{"time_limit": "30", "data_time_limit": "30", **settings})
    root = root or cluster / "root"
    jobs = plan(PlannedRun("run", ("ingest",), 4, ("run.toml",)), config, 1001)
    keep_scripts(jobs, cluster / "run.toml", root, config)
    refuse(jobs, config, root, cluster / "run.toml", sources)


def test_what_fits_is_let_through(cluster):
    look(cluster, partition="short", nodes=2, gpus_per_node=2, memory="60G", account="tests")
    assert not (cluster / "queued").exists()


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        (
            {"partition": "nowhere"},
            r"slurm.partition = 'nowhere'.*there are long, short.*Slurm says: sbatch: .*nowhere",
        ),
        ({"data_partition": "nowhere"}, r"slurm.data_partition = 'nowhere'"),
        ({"data_account": "other"}, r"slurm.data_account = 'other': you may charge tests"),
        ({"account": "other"}, r"slurm.account = 'other': you may charge tests"),
        (
            {"time_limit": "2:00:00"},
            r"slurm.time_limit = '2:00:00' is above the partition's limit \(short MaxTime=01:00:00\)",
        ),
        (
            {"data_time_limit": "8-0", "data_partition": "long"},
            r"slurm.data_time_limit = '8-0' is above .*long MaxTime=7-",
        ),
        ({"gpus_per_node": 3}, r"slurm.gpus_per_node = 3: 3 GPUs are requested on a node, .* more than 2"),
        ({"cpus_per_task": 5, "gpus_per_node": 2}, r"10 CPUs are requested on a node, .* more than 8"),
        ({"memory": "128G"}, r"slurm.memory = '128G': 131,072 MB are requested .* more than 64,000"),
        ({"nodes": 3}, r"slurm.nodes = 3: a job gets at most 2 of short"),
        ({"nodes": 2, "spare_nodes": 1}, r"slurm.nodes = 2 and spare_nodes = 1: a job gets at most 2 of short"),
        ({"partition": "long", "nodes": 2}, r"slurm.nodes = 2: a job gets at most 1 of long"),
    ],
)
def test_what_the_cluster_has_not_is_refused(cluster, settings, output):
    with pytest.raises(ClusterError, match=f"(?s)nothing was queued.*{output}"):
        look(cluster, **settings)
    assert not (cluster / "queued").exists()


def test_a_job_that_its_qos_would_never_start_is_refused(cluster):
    (cluster / "qos").write_text("normal|||00:20:00\n")
    with pytest.raises(ClusterError) as output:
        look(cluster, data_time_limit="20")
    assert str(output.value).splitlines()[1:] == [
        "  slurm.time_limit = '30' is above what the qos normal (MaxWall) allows, 00:20:00. Lower it; for a longer "
        "run, slurm.chain = N makes N jobs in a row."
    ]


def test_what_a_person_wrote_about_a_node_counts_as_nothing(cluster):
    scontrol = cluster / "programs" / "scontrol"
    scontrol.write_text(
        "#!/bin/bash\nprintf 'NodeName=n1 CPUTot=8 State=DOWN Reason=L\\xfcfter CPUTot=1 State=IDLE\\n'\n"
    )
    assert [(node.cpus, node.state) for node in commands.nodes()] == [(8, "DOWN")]


@pytest.mark.parametrize("answer", ["12", "12;cluster", "-- Welcome --\nTo 7 projects\n12\n"])
def test_the_id_is_found_among_a_wrappers_words(monkeypatch, answer):
    monkeypatch.setattr(commands, "_run", lambda *words: answer)
    assert commands.submit(Path("script"), []) == "12"
    monkeypatch.setattr(commands, "_run", lambda *words: "queued")
    with pytest.raises(ClusterError, match=r"no job id: 'queued'\. The job may be queued"):
        commands.submit(Path("script"), [])


@pytest.mark.parametrize("ends", [ClusterError("sbatch: no answer within 60 s"), KeyboardInterrupt()])
def test_a_job_that_sbatch_queued_without_an_answer_is_cancelled(tmp_path, monkeypatch, ends):
    """The controller took the third, and its answer never came; a job of another root stays."""
    config = SlurmConfig(time_limit="30", data_time_limit="30")
    jobs = plan(PlannedRun("run", ("ingest", "clean"), 4, ("run.toml",)), config, 1001)
    keep_scripts(jobs, tmp_path / "run.toml", tmp_path, config)
    queued = {"7": "/other/slurm/ingest.sbatch"}

    def answer(program, *words):
        if program == "squeue":
            return "".join(f"{job}|{script}\n" for job, script in queued.items())
        if program == "scancel":
            for job in words:
                del queued[job]
        elif program == "sbatch":
            queued[str(10 + len(queued))] = words[-1]
            if len(queued) == 4:
                raise ends
            return str(9 + len(queued))
        return ""

    monkeypatch.setattr(commands, "_run", answer)
    with pytest.raises(type(ends)):
        submit([JobRequest(job) for job in jobs], tmp_path, config)
    assert list(queued) == ["7"]


def test_slurms_own_words_come_with_the_fix(cluster):
    (cluster / "refusal").write_text("sbatch: error: Invalid account or account/partition combination specified")
    with pytest.raises(ClusterError, match=r"Invalid account or account/partition .*Fix: set slurm") as output:
        look(cluster)
    assert str(output.value).count("Invalid account") == 1  # each of its answers once
    with pytest.raises(ClusterError, match=r"\Asbatch: error: Invalid account"):  # with one prefix
        commands.submit(Path("script"), [])


def test_a_node_that_is_down_now_is_no_refusal(cluster, caplog):
    (cluster / "refusal").write_text("sbatch: error: Required node not available (down, drained or reserved)")
    look(cluster)
    assert "cannot start now" in caplog.text


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=r"scontrol: not on this machine's PATH.*login node"):
        commands.max_array_size()


def test_a_path_that_a_node_does_not_see_is_refused(cluster):
    srun = cluster / "programs" / "srun"
    srun.write_text('#!/bin/bash\necho "srun: error: n1: task 0: Exited with exit code 1" >&2; exit 1\n')
    with pytest.raises(ClusterError, match=r"the nodes do not see it.*Choose a --root.*task 0: Exited"):
        look(cluster)


def test_the_node_that_looks_is_one_that_a_job_may_get(cluster):
    """A node with a dead mount is named, and once it is excluded, another one looks."""
    dead = 'echo "srun: error: n1: task 0: Exited with exit code 1" >&2; exit 1'
    asked = cluster / "asked"
    (cluster / "programs" / "srun").write_text(
        f'#!/bin/bash\necho "$*" >> {asked}\n[[ $* == *" --exclude=n1 "* ]] || {{ {dead}; }}\n'
    )
    with pytest.raises(ClusterError, match=r"(?s)the nodes do not see it.*n1: task 0"):
        look(cluster)
    look(cluster, exclude="n1", qos="long", data_qos="short", reservation="course")
    assert "--qos=short --reservation=course --exclude=n1" in asked.read_text().splitlines()[-1]


def test_sources_and_the_script_that_is_sourced_must_be_seen_too(cluster):
    srun = cluster / "programs" / "srun"
    elsewhere = cluster / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "modules.sh").touch()
    output = 'echo "srun: error: n1: task 0: Exited with exit code 1" >&2; exit 1'
    srun.write_text(f'#!/bin/bash\n[[ $* != *" {elsewhere}" ]] || {{ {output}; }}\n')
    look(cluster)
    for unseen in ({"sources": [elsewhere]}, {"environment": str(elsewhere / "modules.sh")}):
        with pytest.raises(ClusterError, match=r"elsewhere: the nodes do not see it"):
            look(cluster, **unseen)


def test_where_no_node_is_free_memory_is_refused_and_a_disk_is_warned_of(cluster, caplog, monkeypatch):
    (cluster / "busy").touch()
    monkeypatch.setattr("slurm.submit_preflight.file_system_of", lambda path, mounts: "ext4")
    look(cluster)
    assert "no node is free to check" in caplog.text
    monkeypatch.setattr("slurm.submit_preflight.file_system_of", lambda path, mounts: "tmpfs")
    with pytest.raises(ClusterError, match="is on tmpfs, in the memory of this machine alone"):
        look(cluster)


def test_a_networks_file_system_is_believed(cluster, monkeypatch):
    (cluster / "busy").touch()
    monkeypatch.setattr(
        "slurm.submit_preflight.file_system_of", lambda path, mounts: "tmpfs" if "link" in path.parts else "lustre"
    )
    (cluster / "link").symlink_to(cluster)  # of a login node without a disk, to the file system
    look(cluster, root=cluster / "link" / "root")


def test_the_file_system_of_a_path():
    mounts = ["/dev/sda / ext4 rw 0 0", "host:/x /net nfs4 rw 0 0", "tmpfs /net/a\\040b tmpfs rw 0 0", "odd"]
    wanted = {"/etc": "ext4", "/net/me/run": "nfs4", "/net/a b/run": "tmpfs", "/nets": "ext4"}
    assert {path: file_system_of(Path(path), mounts) for path in wanted} == wanted


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("2:30", 2.5), ("1:02:00", 62), ("1-2", 1560), ("1-00:10", 1450), ("infinite", float("inf"))],
)
def test_wall_times(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("64G", 65536), ("500", 500), ("1.5G", 1536), ("2T", 2 << 20), ("", 0)])
def test_memory(text, expected):
    assert megabytes(text) == expected


@pytest.mark.parametrize(
    ("settings", "root", "output"),
    [
        ({"time_limit": "4", "signal_seconds": 180}, "/r", "slurm.time_limit = '4' with signal_seconds = 180"),
        ({"environment": "/nowhere.sh"}, "/r", "slurm.environment: there is no /nowhere.sh"),
        ({}, "/r/100%", "Slurm reads '%'"),
        (
            {"container": "/nowhere.sif", "container_runtime": "apptainer"},
            "/r",
            "slurm.container: there is no /nowhere",
        ),
        ({"nodes": 2, "min_nodes": 3}, "/r", "slurm.min_nodes = 3 is above slurm.nodes = 2"),
        ({"container_mounts": ("data",)}, "/r", "slurm.container_mounts: 'data' is not an absolute path"),
    ],
)
def test_settings_that_contradict_are_refused(settings, root, output):
    with pytest.raises(ConfigError, match=output):
        check_settings(SlurmConfig(**settings), Path(root))


@pytest.mark.parametrize(
    "settings",
    [{"partition": "a b"}, {"time_limit": "soon"}, {"memory": "much"}, {"nodes": 0}, {"container_runtime": "docker"},
     {"account": "x\n#SBATCH --uid=0"}],
)  # fmt: skip
def test_values_that_no_option_takes_are_refused(settings):
    with pytest.raises(ValueError, match="validation error"):
        SlurmConfig(**settings)


def test_the_runs_file_wins_over_the_sites(tmp_path, monkeypatch):
    site = tmp_path / "site" / "slurm.toml"
    site.parent.mkdir()
    site.write_text('partition = "gpu"\naccount = "lab"\nenvironment = "modules.sh"\nretries = 7\n')
    monkeypatch.setenv(SITE_VARIABLE, str(site))
    merged = with_site(SlurmConfig(partition="big", nodes=1), tmp_path)
    assert (merged.partition, merged.account, merged.retries, merged.nodes) == ("big", "lab", 7, 1)
    assert merged.environment == str(tmp_path / "site" / "modules.sh")
    assert with_site(SlurmConfig(environment="my.sh"), tmp_path).environment == str(tmp_path / "my.sh")
    site.write_text('cluster = "ours.toml"\n')
    (site.parent / "ours.toml").touch()
    assert with_site(SlurmConfig(), tmp_path).cluster == str(site.parent / "ours.toml")
    assert with_site(SlurmConfig(cluster="h100"), tmp_path).cluster == "h100"
    site.write_text('partitions = "gpu"\n')
    with pytest.raises(ConfigError, match="did you mean 'partition'"):
        with_site(SlurmConfig(), tmp_path)
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="no such file"):
        with_site(SlurmConfig(), tmp_path)


def test_an_image_that_is_a_file_is_found_from_the_file_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(SITE_VARIABLE, raising=False)
    files, names = ("assay.sif", "./images/assay"), ("docker://x/y:1", "nvcr.io#x/y:1", "ubuntu")
    for named, file in {**dict.fromkeys(files, True), **dict.fromkeys(names, False)}.items():
        merged = with_site(SlurmConfig(container=named, container_runtime="pyxis"), tmp_path)
        assert merged.container == (str(tmp_path / named) if file else named)
        assert merged.image_file == (tmp_path / named if file else None)


def test_an_image_must_be_seen_by_the_nodes(cluster):
    (cluster / "images").mkdir()
    image = cluster / "images" / "assay.sif"
    image.touch()
    output = 'echo "srun: error: n1: task 0: Exited with exit code 1" >&2; exit 1'
    srun = cluster / "programs" / "srun"
    srun.write_text(f'#!/bin/bash\n[[ $* != *" {image.parent}" ]] || {{ {output}; }}\n')
    with pytest.raises(ClusterError, match=r"images: the nodes do not see it"):
        look(cluster, container=str(image), container_runtime="apptainer")


def test_the_shortest_warning_counts():
    assert SlurmConfig(signal_seconds=180).warning_seconds == 180
    assert SlurmConfig(signal_seconds=180, notice_seconds=30).warning_seconds == 30
    assert SlurmConfig(signal_seconds=20, notice_seconds=30).warning_seconds == 20


def test_an_image_needs_something_that_runs_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(SITE_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="give both"):
        with_site(SlurmConfig(container="image.sif"), tmp_path)


def test_a_job_around_does_not_steer_the_tools(cluster, monkeypatch):
    (cluster / "programs" / "sbatch").write_text(f"#!/bin/bash\nenv > {cluster}/seen; echo '12;testbed'\n")
    for name in ("SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    assert commands.submit(Path("script"), []) == "12"
    seen = {line.partition("=")[0] for line in (cluster / "seen").read_text().splitlines()}
    assert "SLURM_CONF" in seen
    assert not seen & {"SLURM_JOB_ID", "SLURM_CPUS_PER_TASK", "SBATCH_PARTITION", "SQUEUE_FORMAT"}


def test_elapsed_times_and_energies_are_read(monkeypatch):
    assert [commands.seconds(text) for text in ("1-02:03:04", "05:06", "INVALID", "")] == [93784, 306, 0, 0]
    line = "\x1f".join(["7", "CANCELLED by 0", "0:15", "61", "n1", "122", str((1 << 64) - 5), "run.data", "assay: x|y"])
    monkeypatch.setattr(commands, "_run", lambda *words: f"{line}\n{line.replace('7', '7.batch', 1)}\n")
    [found] = commands.accounted(["7"])
    assert (found.state, found.signal, found.joules, found.comment) == ("CANCELLED", 15, None, "assay: x|y")


def test_the_energy_of_a_job_is_that_of_its_steps(monkeypatch):
    output = [
        ("7", ""),
        ("7.batch", "600"),
        ("7", ""),
        ("7.batch", "500"),
        ("7.0", "400"),
        ("7.1", "900"),
        ("7.2", str(-5 % 2**64)),
    ]
    lines = ["\x1f".join([job, "COMPLETED", "0:0", "60", "n1", "60", joules, "run.data", ""]) for job, joules in output]
    monkeypatch.setattr(commands, "_run", lambda *words: "\n".join(lines))
    assert [start.joules for start in commands.accounted(["7"])] == [600, 1300]

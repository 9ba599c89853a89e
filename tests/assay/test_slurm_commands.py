"""The commands `assay slurm ...`, as a user types them, without Slurm and with stand-ins for its tools."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from assay.cli import slurm_commands
from assay.cli.main import main
from assay.cli.run_commands import refuse_edited
from assay.config import load_run
from governance.errors import ManifestError
from governance.files import append_line, read_lines
from governance.signing.running_digests import JOB_RECORDS
from governance.signing.signed_lines import without_signature
from governance.stage import ShareDone
from governance.verification import verify_evidence
from slurm import job_states
from slurm.config import SITE_VARIABLE
from slurm.frozen import VARIABLE as SUBMITTED_VARIABLE
from slurm.submit import JOBS_FILE
from slurm.submit import submitted as read_jobs

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.toml"


@pytest.fixture(autouse=True)
def no_site(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.delenv(SITE_VARIABLE, raising=False)


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Tools that accept any arguments: sbatch hands out ids, and the queue answers what the file `queue` contains."""
    programs = tmp_path / "programs"
    programs.mkdir()
    count = tmp_path / "count"
    bodies = {
        "sbatch": f"""[[ $* == *--test-only* ]] || {{ echo x >> {count}; wc -l < {count}; }}
            echo "$*" >> {tmp_path}/calls""",
        "scontrol": f'case $* in *config*) echo "MaxArraySize = 3" ;; release*) echo "$*" >> {tmp_path}/calls ;; esac',
        "squeue": f"cat {tmp_path}/queue 2>/dev/null; exit 0",
        "sacct": "exit 1",
        "sacctmgr": "exit 1",
        "scancel": f'echo "scancel $*" >> {tmp_path}/calls',
        "srun": 'while [[ $1 == -* ]]; do shift; done; "$@"',
    }
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


def slurm(*words, root=None):
    command, *rest = words
    return main(["slurm", command, str(CONFIG), *([f"--root={root}"] if root else []), *rest])


def test_render_shows_the_scripts_without_slurm(no_slurm, capsys):
    assert slurm("render") == 0
    output = capsys.readouterr().out
    names = [line.split()[2] for line in output.splitlines() if line.startswith("# ---- ")]
    assert names[:2] == ["sources", "ingest"]
    assert names[-5:] == ["data", "audit", "train", "evaluate", "report"]
    assert slurm("render", "--job", "train", "--set", "slurm.nodes=3") == 0
    output = capsys.readouterr().out
    assert "#SBATCH --nodes=3" in output
    command = next(line for line in output.splitlines() if line.startswith("command="))
    words = shlex.split(command.removeprefix("command=(")[:-1])
    assert words[:3] == ["assay", "train", str(CONFIG)]
    assert words[-2:] == ["--set", "slurm.nodes=3"]  # the job sees the typed command
    assert slurm("render", "--job", "nothing") == 78


def test_a_training_with_spare_nodes_knows_on_how_many_it_may_go_on(no_slurm, capsys):
    words = ["--job", "train", "--set", "slurm.nodes=4", "--set", "slurm.spare_nodes=2"]
    words += ["--set", "engine.micro_batch_size=2"]
    assert slurm("render", *words, "--set", "slurm.min_nodes=1") == 0
    output = capsys.readouterr().out
    assert "#SBATCH --nodes=6\n" in output
    assert "#SBATCH --no-kill\n" in output
    options = next(line for line in output.splitlines() if line.startswith("options="))
    counts = [word.partition("=")[2].rstrip(")") for word in options.split() if word.startswith("--node-count=")]
    assert counts == ["4", "2", "1"]  # the batch does not divide over three
    assert slurm("render", "--job", "train", "--set", "slurm.nodes=4", "--set", "slurm.min_nodes=3") == 78
    assert "slurm.min_nodes = 3: the training cannot start on fewer than 4 node(s); on 3: " in capsys.readouterr().err
    assert slurm("render", *words) == 0
    assert capsys.readouterr().out.count("--node-count=") == 1


def test_without_slurm_nothing_is_submitted(no_slurm, tmp_path, caplog):
    assert slurm("submit", root=tmp_path / "root") == 69
    assert not (tmp_path / "root").exists()
    for command in ("status", "cancel", "logs"):
        assert slurm(command, root=tmp_path / "root") == 66


def test_a_run_is_submitted_once_and_reported(cluster, capsys, monkeypatch):
    root = cluster / "root"
    assert slurm("submit", root=root) == 0
    said = capsys.readouterr()
    assert "if nodes have no internet, cancel, and submit with --fetch" in said.err
    lines = said.out.splitlines()
    assert lines[1].split() == ["2", "ingest", "(3", "of", "3", "tasks)"]  # MaxArraySize is 3 here
    assert lines[-1].startswith("next: assay slurm status")
    calls = (cluster / "calls").read_text().splitlines()
    handed = [line for line in calls if "--parsable" in line]
    assert handed[0] == f"--parsable --hold {root}/slurm/sources.sbatch"
    assert handed[1] == f"--parsable --dependency=afterok:1 {root}/slurm/ingest.sbatch"
    assert calls[-1] == "release 1"
    assert (root / "slurm" / "train.sbatch").exists()

    (cluster / "queue").write_text("2_0|RUNNING|None|1:00|n1|N/A||\n3|PENDING|Dependency|0:00||N/A||\n")
    assert slurm("submit", root=root) == 78
    assert slurm("status", root=root) == 0
    output = capsys.readouterr().out
    assert "ingest  " in output
    assert "! sacct: status 1" in output
    log = root / "slurm" / "logs" / "quickstart.ingest-2_0.0.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("one\ntwo\n")
    assert slurm("logs", root=root) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert slurm("logs", "--json", root=root) == 0
    assert json.loads(capsys.readouterr().out) == {"job": "ingest", "path": str(log), "text": "one\ntwo\n"}
    assert slurm("cancel", root=root) == 0
    assert "cancelled: ingest, ingest-join" in capsys.readouterr().out
    assert (cluster / "calls").read_text().splitlines()[-1] == "scancel 2 3"

    (cluster / "queue").unlink()  # the controller forgot both jobs
    monkeypatch.setattr(slurm_commands, "WATCH_SECONDS", 0.0)  # the answer before would be shown for a minute
    assert slurm("status", "--watch", root=root) == 0  # nothing more will happen by itself, so the command ends
    output = capsys.readouterr().out
    assert "LOST" in output
    assert f"then: assay slurm retry {CONFIG} --root {root}" in output.splitlines()[-1]
    assert slurm("retry", root=root) == 0
    assert "ingest (3 of 3 tasks)" in capsys.readouterr().out


def test_a_watcher_is_content_with_an_answer_of_the_last_minute(cluster, monkeypatch):
    ages, plain = [], job_states.gather
    monkeypatch.setattr(job_states, "gather", lambda root, age=0.0: ages.append(age) or plain(root, age))
    assert slurm("submit", root=cluster / "root") == 0
    (cluster / "queue").unlink(missing_ok=True)  # the controller forgot all jobs: nothing is left to watch
    for words, age in ((("--watch",), 60.0), ((), 0.0)):
        assert slurm("status", *words, root=cluster / "root") == 0
        assert ages[-1] == age


def test_what_is_elsewhere_is_fetched_before_anything_is_queued(cluster, monkeypatch):
    def corpus(run, runtime):
        assert runtime.mode == "join"
        assert not (cluster / "root" / "slurm" / "jobs.jsonl").exists()
        raise ShareDone("ingest", "its shards are an array's", 0)

    monkeypatch.setattr("assay.pipeline.corpus", corpus)
    assert slurm("submit", "--fetch", root=cluster / "root") == 0
    assert (cluster / "root" / "slurm" / "jobs.jsonl").exists()


def test_a_run_that_is_edited_while_it_is_submitted_is_not_queued(cluster, monkeypatch, capsys):
    """A download may take hours; the jobs would take the edit for what was submitted and checked."""
    own = cluster / "run.toml"
    own.write_text(f'base = "{CONFIG}"\n')

    def corpus(run, runtime):
        own.write_text(f'base = "{CONFIG}"\n[train]\nsteps = 7\n')
        raise ShareDone("ingest", "its shards are an array's", 0)

    monkeypatch.setattr("assay.pipeline.corpus", corpus)
    assert main(["slurm", "submit", str(own), "--root", str(cluster / "root"), "--fetch"]) == 78
    assert "was edited while it was submitted" in capsys.readouterr().err
    assert not (cluster / "root" / "slurm" / "jobs.jsonl").exists()


@pytest.fixture
def submitted(cluster, monkeypatch):
    """A root with a line in each record of its jobs, and its run: an edit of the program was taken."""
    root, run = cluster / "root", load_run(CONFIG, [])
    assert slurm("submit", "--take-edits", root=root) == 0
    monkeypatch.setattr("slurm.frozen.code_digest", lambda: "0" * 64)
    monkeypatch.setenv(SUBMITTED_VARIABLE, str(root))
    refuse_edited(run, root)
    return root, run


def test_each_line_on_jobs_is_signed_and_a_foreign_one_is_named(submitted):
    root, run = submitted
    journal = run.journal(root)

    def state(number):
        journal.state("evaluation", {f"evaluation/{number}": "0" * 64}, [])

    for number, name in enumerate(JOB_RECORDS):
        path, whole = root / name, (root / name).read_bytes()
        lines = read_lines(path)
        assert all({"writer", "number", "signature"} <= set(line) for line in lines)
        append_line(path, json.dumps(without_signature(lines[-1])))
        with pytest.raises(ManifestError, match=rf"{name}: line {len(lines) + 1}: no process of a run wrote"):
            state(number)
        assert [one for one in verified(root, run) if one.startswith(f"{name}: line {len(lines) + 1}: no process")]
        path.write_bytes(whole)
        state(number)
    assert verified(root, run) == []
    assert len(read_jobs(root)) == len(read_lines(root / "slurm" / JOBS_FILE))


def verified(root, run):
    return verify_evidence([], root, run.keyring)


@pytest.mark.parametrize("name", JOB_RECORDS)
def test_a_record_of_jobs_that_nobody_announced_stops_a_submission(cluster, capsys, name):
    """A statement in between does not make it a record of an earlier release."""
    root, run = cluster / "root", load_run(CONFIG, [])
    line = {
        "after": [],
        "job": "1",
        "kind": "data",
        "name": "x",
        "numbers": [],
        "submission": 1,
        "submitted": "2026-01-01T00:00:00Z",
        "tasks": 0,
    }
    append_line(root / name, json.dumps(line))
    run.journal(root).state("evaluation", {"evaluation/1": "0" * 64}, [])
    assert slurm("submit", root=root) == 65
    assert re.search(rf"{name}: has \d+ bytes, and no line", capsys.readouterr().err)
    assert not (cluster / "calls").exists() or "--hold" not in (cluster / "calls").read_text()
    assert [fault.partition(":")[0] for fault in verified(root, run)] == [name]


def setting(*values):
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize(
    ("values", "status", "output"),
    [
        (["slurm.nodes=3"], 78, "micro_batch_size x ranks = 16 x 3 = 48"),
        (["slurm.gpus_per_node=4", "engine.micro_batch_size=8"], 78, "micro_batch_size x ranks = 8 x 4 = 32"),
        (["slurm.nodes=2", "slurm.processes_per_node=4", "engine.micro_batch_size=4"], 78, "4 x 8 = 32"),
        (['slurm.memory="100M"'], 1, "slurm.memory = '100M' the run would end with:"),
        (['slurm.memory="1G"', "slurm.processes_per_node=16", "engine.micro_batch_size=1"], 1, "(16 rank(s) per node)"),
        (
            ["slurm.gpus_per_node=1", "slurm.processes_per_node=2", "engine.micro_batch_size=8"], 78,
            "2 ranks on a node of 1 GPU(s)",
        ),
        (['train.precision="fp16"'], 78, "train.precision = 'fp16' on CPU"),
        (
            ["model.num_hidden_layers=400", "slurm.gpus_per_node=1", 'slurm.gpu_memory="2G"'], 1,
            "slurm.gpu_memory = '2G' the run would end with:",
        ),
        (["model.num_hidden_layers=40000", "slurm.gpus_per_node=1"], 1, "may use 402.3 GiB on the device"),
    ],
    ids=["nodes", "gpus", "processes", "memory", "a share of it", "more ranks than gpus", "arithmetic", "of a GPU",
         "of any GPU"],
)  # fmt: skip
def test_what_training_would_refuse_is_refused_before_anything_is_queued(cluster, capsys, values, status, output):
    assert slurm("submit", *setting(*values), root=cluster / "root") == status
    said = capsys.readouterr().err
    assert "nothing was queued" in said
    assert output in said
    assert not (cluster / "calls").exists()
    assert not (cluster / "root").exists()


@pytest.mark.parametrize(
    "values",
    [
        ["slurm.nodes=2", "engine.micro_batch_size=8"],
        ['slurm.memory="64G"'],
        ['slurm.memory="0"'],
        ["slurm.gpus_per_node=2", "engine.micro_batch_size=8", 'train.precision="fp16"'],
        ['engine.device="cuda"', "slurm.gpus_per_node=1", 'train.precision="fp8"'],  # only the node knows its kind
        ["model.num_hidden_layers=400", "slurm.gpus_per_node=1"],  # and its memory
    ],
)
def test_what_only_the_nodes_know_is_not_refused(cluster, values):
    assert slurm("submit", *setting(*values), root=cluster / "root") == 0


def test_a_retry_looks_at_the_start_too(cluster, capsys):
    root = cluster / "root"
    assert slurm("submit", root=root) == 0
    (cluster / "queue").write_text("1|FAILED|None|1:00|n1|N/A||\n")
    before = (cluster / "calls").read_text()
    assert slurm("retry", *setting("slurm.nodes=3"), root=root) == 78
    assert "nothing was queued" in capsys.readouterr().err
    assert (cluster / "calls").read_text() == before


def test_a_submission_imports_no_torch(cluster):
    words = ["slurm", "submit", str(CONFIG), "--root", str(cluster / "root"), *setting("slurm.gpus_per_node=1")]
    code = f"import sys\nfrom assay.cli.main import main\nassert main({words!r}) == 0\n"
    code += "print(sorted({'torch', 'deepspeed', 'great_expectations', 'wandb'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_sources_are_listed_once(cluster, monkeypatch):
    from data_pipeline import prepare

    listed, listing = [], prepare.expected_items
    monkeypatch.setattr(
        prepare, "expected_items", lambda source, *more: listed.append(source.name) or listing(source, *more)
    )
    for command in ("submit", "render"):
        listed.clear()
        assert slurm(command, root=cluster / "root") == 0
        assert listed
        assert len(set(listed)) == len(listed)


def test_a_retry_that_is_refused_has_cancelled_nothing(cluster, capsys):
    root = cluster / "root"
    assert slurm("submit", root=root) == 0
    waits = "\n".join(f"{job}|PENDING|Dependency|0:00||N/A||" for job in range(4, 40))
    (cluster / "queue").write_text(f"1|FAILED|None|1:00|n1|N/A||\n2_0|PENDING|Dependency|0:00||N/A||\n{waits}\n")
    taken = (cluster / "programs" / "sbatch").read_text()
    (cluster / "programs" / "sbatch").write_text(
        "#!/bin/bash\n[[ $* != *--test-only* ]] || { echo 'Invalid qos specification' >&2; exit 1; }\n" + taken
    )
    before = (cluster / "calls").read_text()
    assert slurm("retry", root=root) == 69
    assert "Invalid qos specification" in capsys.readouterr().err
    assert (cluster / "calls").read_text() == before
    (cluster / "programs" / "sbatch").write_text(taken)
    assert slurm("retry", root=root) == 0
    assert "\nscancel 2_0 5 " in (cluster / "calls").read_text()


def test_a_cancel_waits_for_a_submission_and_leaves_none_of_its_jobs(cluster, capsys):
    """The submission is queueing its jobs when the cancellation begins; jobs queued after that end, too."""
    root, go = cluster / "root", cluster / "go"
    taken = (cluster / "programs" / "sbatch").read_text()
    (cluster / "programs" / "sbatch").write_text(
        f"{taken}\nwhile [[ $* == */audit.sbatch && $* == *--parsable* && ! -e {go} ]]; do sleep 0.05; done\n"
    )

    def begin(command):
        words = [sys.executable, "-m", "pretrain", "slurm", command, str(CONFIG), "--root", str(root)]
        return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(CONFIG.parents[1])})

    submission = begin("submit")
    try:
        while not (cluster / "calls").exists() or (cluster / "calls").read_text().count("/audit.sbatch") < 2:
            assert submission.poll() is None
            time.sleep(0.05)
        (cluster / "queue").write_text("".join(f"{job}|PENDING|Dependency|0:00||N/A||\n" for job in range(1, 60)))
        end = begin("cancel")
        with pytest.raises(subprocess.TimeoutExpired):
            end.wait(3)
        assert "scancel" not in (cluster / "calls").read_text()
    finally:
        go.touch()
    assert (submission.wait(300), end.wait(300)) == (0, 0)
    lines = [json.loads(line) for line in (root / "slurm" / "jobs.jsonl").read_text().splitlines()]
    single = {line["job"] for line in lines if not line["tasks"]}
    assert len(lines) == 20  # every job was queued before the cancel began
    assert set((cluster / "calls").read_text().splitlines()[-1].split()) == {"scancel", *single}
    assert {path.name for path in (root / "slurm" / "cancelled").iterdir()} == single


def forecast(path, grams, step=timedelta(hours=1), first=None):
    first = first or datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    rows = [f"{(first + number * step).isoformat()},{value}" for number, value in enumerate(grams)]
    path.write_text("\n".join(["time,grams_per_kwh", *rows]) + "\n")
    return path


def test_a_run_begins_in_the_greenest_hours(cluster, capsys):
    root = cluster / "root"
    csv = forecast(cluster / "day.csv", [400] * 5 + [40] * 5 + [400] * 38)
    assert slurm("submit", "--carbon-aware", str(csv), "--expected", "3", root=root) == 0
    output = capsys.readouterr().out
    assert re.search(
        r"begins not before \S+ \S+: 40 g CO2e/kWh by the forecast, 400 if it began now \(90% less\)", output
    )
    handed = [line for line in (cluster / "calls").read_text().splitlines() if "--parsable" in line]
    [waits] = re.findall(r"--parsable --hold --begin=now\+(\d+) ", handed[0])
    assert 4 * 3600 - 60 <= int(waits) <= 5 * 3600
    assert not [line for line in handed[1:] if "--begin" in line]  # the others wait for it
    kept = json.loads((root / "slurm" / "carbon.json").read_text())
    assert (kept["grams_per_kwh"], kept["at_once_grams_per_kwh"], kept["expected_hours"]) == (40.0, 400.0, 3.0)


def test_a_run_never_begins_later_than_it_may(cluster, capsys):
    csv = forecast(cluster / "day.csv", [400, 390] + [380] * 3 + [40] * 43)
    words = ["--carbon-aware", str(csv), "--latest", "0.5", "--expected", "1"]
    assert slurm("submit", *words, root=cluster / "root") == 0
    [waits] = re.findall(r"--begin=now\+(\d+) ", (cluster / "calls").read_text())
    assert int(waits) <= 1800


@pytest.mark.parametrize(
    ("rows", "words", "output"),
    [
        ("2026-01-05T00:00:00+00:00,40\n2026-01-05T01:00:00+00:00,41\n", [], "the forecast covers 2026-01-05"),
        ("2026-01-05T00:00:00,40\n2026-01-05T01:00:00,41\n", [], "has no offset from UTC"),
        ("2026-01-05T01:00:00Z,40\n2026-01-05T00:00:00Z,41\n", [], "is not after"),
        (None, [], "cannot be read"),
        ("", ["--set", "slurm.time_limit='infinite'"], "give --expected HOURS"),
    ],
    ids=["of another day", "naive", "unordered", "no file", "without a limit"],
)
def test_a_wrong_forecast_is_refused_before_anything_is_queued(cluster, capsys, rows, words, output):
    if rows is not None:
        (cluster / "day.csv").write_text(f"time,grams_per_kwh\n{rows}")
    assert slurm("submit", "--carbon-aware", str(cluster / "day.csv"), *words, root=cluster / "root") == 78
    assert output in capsys.readouterr().err
    assert not (cluster / "calls").exists()
    assert slurm("submit", "--latest", "3", root=cluster / "root") == 78  # no job of that name


@pytest.mark.parametrize("limit", [1e-9, 1e9])
def test_a_submission_prints_its_plan_and_warns_of_the_budget(cluster, capsys, limit):
    policy = (CONFIG.parent / "policy.toml").read_text(encoding="utf-8")
    (cluster / "policy.toml").write_text(f"{policy}\n[energy_budget]\nkilowatt_hours = {limit}\n", encoding="utf-8")
    path = cluster / "mine.toml"
    path.write_text(f'base = "{CONFIG}"\n[slurm]\ncluster = "cpu"\n[engine]\nmicro_batch_size = 8\n', encoding="utf-8")
    assert main(["slurm", "submit", str(path), f"--root={cluster / 'root'}"]) == 0
    said = capsys.readouterr()
    assert re.search(
        r"plan: [\d.]+ \([\d.]+ to [\d.]+\) (hours|minutes|seconds) on 1 node\(s\), MFU \d+ %, USD .* [Mk]?Wh", said.out
    )
    assert ("so it would be stopped before its end" in said.err) == (limit < 1)
    assert "the start would end with" not in said.err
    small = (CONFIG.parent / "clusters" / "cpu.toml").read_text(encoding="utf-8")
    (cluster / "small.toml").write_text(small.replace("memory_gib = { value = 240", "memory_gib = { value = 0.1"))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"cpu"', '"small.toml"'), encoding="utf-8")
    assert main(["slurm", "submit", str(path), f"--root={cluster / 'small'}"]) == 0
    assert "on small.toml nodes the start would end with: this model does not fit" in capsys.readouterr().err
    path.write_text(text.replace('"cpu"', '"none.toml"'), encoding="utf-8")
    assert main(["slurm", "submit", str(path), f"--root={cluster / 'other'}"]) == 78
    assert not (cluster / "other" / "slurm" / "jobs.jsonl").exists()
    assert "cluster 'none.toml': no such file; the shipped ones are" in capsys.readouterr().err

"""`assay data prepare --task` and `--merge` on small corpora: in any order, the digests of one plain run."""

import contextlib
import gzip
import json
import random
import subprocess
import sys

import pytest

from assay.cli.main import main
from assay.config import load_run
from data_pipeline.config import DataConfig
from data_pipeline.prepare import stage_names, stages, survey
from data_pipeline.readers.hub import HubFile, HubListing
from governance import parallel
from governance.manifest import read_manifest
from governance.stage import Runtime
from tests.conftest import tale

IDS = """
[[data.sources]]
type = "jsonl"
name = "named"
paths = ["more/ids*.jsonl"]
licence = "CC0-1.0"
id_field = "id"

[data.ingest]
shard_bytes = 4000
"""


class Fault(Exception):
    """A shard that dies."""


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """The digests of files that a test has just written are cached, too."""
    monkeypatch.setattr("governance.file_digests._SETTLED_NANOSECONDS", -(10**18))


@pytest.fixture
def calls(monkeypatch):
    """(stage, function, key) of each call that ended, and the number of calls after which the next dies (or empty)."""
    made, limit = [], []
    make = parallel._make_shard

    def spy(function, section, records, place, work):
        if limit and len(made) >= limit[0]:
            raise Fault(work[2].name)
        done = make(function, section, records, place, work)
        made.append((records.parent.name, function.__name__, work[1]))
        return done

    monkeypatch.setattr(parallel, "_make_shard", spy)
    return made, limit


def with_ids(project):
    """A second source with ids of its own, some given twice; files larger than a shard, one of them packed."""
    (project / "more").mkdir(exist_ok=True)
    for name, seeds in (("ids", range(200, 230)), ("ids2", range(225, 240))):
        rows = (json.dumps({"text": tale(seed), "id": f"t{seed}"}) + "\n" for seed in seeds)
        (project / "more" / f"{name}.jsonl").write_text("".join(rows))
    with gzip.open(project / "c.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps({"text": tale(seed)}) + "\n" for seed in range(300, 310)))
    text = (project / "run.toml").read_text().replace('["*.jsonl"]', '["*.jsonl", "*.jsonl.gz"]')
    (project / "run.toml").write_text(text.replace("[data.tokenizer]", IDS + "\n[data.tokenizer]"))
    return project


def prepare(project, root, *words):
    common = ["--root", str(root), "--data-workers", "1", "--set", "energy.enabled=false"]
    return main(["data", "prepare", str(project / "run.toml"), *common, *words])


def digests(project, root):
    run = load_run(project / "run.toml", [])
    return {m.stage: m.digest for m in stages(run.config.data, run.folder, Runtime(root, make=False))}


def manifests(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}


def by_turns(project, root, calls, count=1):
    """A join, then arrays and joins alternately until nothing is left; the stages at which the arrays made shards."""
    made, _ = calls
    worked = []
    assert prepare(project, root, "--merge") == 0
    while True:
        made.clear()
        for number in range(count):
            before = manifests(root)
            assert prepare(project, root, "--task", f"{number}/{count}") == 0
            assert manifests(root) == before, "a share commits nothing"
        if not made:
            return worked
        [stage] = {stage for stage, _, _ in made}
        assert len(set(made)) == len(made)
        worked.append(stage)
        made.clear()
        assert prepare(project, root, "--merge") == 0
        assert {stage for stage, _, _ in made} <= {"evaluation_sets"}, "a join makes no shard of a step"


def numbered(stages_in_order):
    names = []
    for place, stage in enumerate(stages_in_order):
        number = stages_in_order[: place + 1].count(stage)
        names.append(stage if number == 1 else f"{stage}-{number}")
    return names


def test_steps_are_what_happens_with_every_stage(everything, calls, capsys):
    run = load_run(everything / "run.toml", [])
    expected = list(survey(run.config.data, run.folder, Runtime(run.folder / "root")).steps)
    assert expected == [
        "ingest", "clean", "classify", "dedup", "dedup-2", "paragraphs", "paragraphs-2", "substrings",
        "substrings-2", "decontaminate", "redact", "mix", "mix-2", "encode", "pack",
    ]  # fmt: skip
    assert numbered(by_turns(everything, everything / "shared", calls)) == expected
    calls[0].clear()
    capsys.readouterr()
    assert prepare(everything, everything / "shared") == 0
    assert calls[0] == [], "a plain run finds all"
    shown = capsys.readouterr().out.partition("\n\n")[0].splitlines()  # without the table of counts
    assert tuple(line.split()[0] for line in shown) == stage_names(run.config.data)
    assert prepare(everything, everything / "plain") == 0
    assert digests(everything, everything / "shared") == digests(everything, everything / "plain")


def test_steps_are_what_happens_with_ids_and_large_files(project, calls):
    run = load_run(with_ids(project) / "run.toml", [])
    expected = list(survey(run.config.data, run.folder, Runtime(run.folder / "root")).steps)
    assert expected == ["ingest", "ingest-2", "ingest-3", "clean", "dedup", "dedup-2", "redact", "encode"]
    assert numbered(by_turns(project, project / "shared", calls, count=2)) == expected
    assert prepare(project, project / "plain") == 0
    assert digests(project, project / "shared") == digests(project, project / "plain")
    [path] = (project / "plain").glob("ingest/*/manifest.json")
    ingested = read_manifest(path)
    assert ingested.stats["removed"] == {"quarantine:duplicate_id": 5}
    made = len(ingested.files("documents", project / "plain"))
    assert abs(survey(run.config.data, run.folder, Runtime(run.folder / "root")).shards - made) <= 0.2 * made


def test_any_order_of_shares_and_joins_some_failing_ends_as_a_plain_run(project, calls):
    """One order by the command; `tests/governance/test_shares.py` has the law for any order."""
    with_ids(project)
    made, limit = calls
    chance = random.Random(0)
    root = project / "shared"
    assert prepare(project, project / "plain") == 0
    wanted = sorted(made)
    assert len(set(wanted)) == len(wanted)
    made.clear()
    for _ in range(20):
        before, count = manifests(root), len(made)
        if chance.random() < 0.3:
            assert prepare(project, root, "--merge") == 0
            assert len(made) == count
            continue
        parts = chance.randint(1, 7)
        limit[:] = [count + chance.randint(0, 3)] * chance.randint(0, 1)
        with contextlib.suppress(Fault):
            assert prepare(project, root, "--task", f"{chance.randrange(parts)}/{parts}") == 0
        limit.clear()
        assert manifests(root) == before
    assert 0 < len(made) < len(wanted)
    assert prepare(project, root) == 0
    assert sorted(made) == wanted, "each shard was made, and no finished one again"
    assert digests(project, root) == digests(project, project / "plain")


def test_a_share_reads_no_source_to_know_its_digest(project, capsys):
    assert prepare(project, project / "shared", "--task", "0/2") == 0
    assert "left at sources: the digest of" in capsys.readouterr().out
    assert not (project / "shared" / "ingest").exists()
    assert prepare(project, project / "shared", "--merge") == 0
    assert "left at ingest: 1 of 1 shards are missing" in capsys.readouterr().out


def test_a_wrong_path_is_reported_by_a_share_and_a_join(project, capsys):
    text = (
        (project / "run.toml").read_text().replace("[data.encode]", '[data.lists]\ndomains = ["no.txt"]\n[data.encode]')
    )
    (project / "run.toml").write_text(text)
    for words in (["--merge"], ["--task", "0/1"]):
        assert prepare(project, project / "shared", *words) == 66
        assert "no.txt" in capsys.readouterr().err


def test_shares_at_once_in_processes(project, tales):
    for number in range(9):
        tales(project / f"c{number}.jsonl", range(1000 + 10 * number, 1010 + 10 * number))
    size = "[data.ingest]\nshard_bytes = 9000\n[data.tokenizer]"
    for name in "ab":
        (project / f"{name}.jsonl").unlink()
    (project / "run.toml").write_text((project / "run.toml").read_text().replace("[data.tokenizer]", size))
    root = project / "shared"
    assert prepare(project, root, "--merge") == 0
    words = [sys.executable, "-m", "pretrain", "data", "prepare", str(project / "run.toml"), "--root", str(root)]
    tasks = [
        subprocess.Popen([*words, "--data-workers", "1", "--task", f"{i}/2"], stdout=subprocess.PIPE, text=True)
        for i in (0, 1)
    ]
    output = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0]
    assert [line[: line.index(" made")] for line in output] == ["left at ingest: 5 shards", "left at ingest: 4 shards"]
    assert len(list(root.glob("ingest/*/documents/*.parquet"))) == 9
    assert not list(root.glob("*/*/manifest.json"))
    assert prepare(project, root, "--merge") == 0
    for words in (["--merge"], ["--task", "0/1"], ["--merge"]):
        assert prepare(project, project / "plain", *words) == 0
    [one], [other] = (list(folder.glob("ingest/*/manifest.json")) for folder in (root, project / "plain"))
    assert read_manifest(one).digest == read_manifest(other).digest


def test_own_filters_are_a_stage_of_the_plan():
    source = {"type": "jsonl", "name": "x", "licence": "MIT", "paths": ["*.jsonl"]}
    values = {"sources": [source], "filters": [{"name": "loud", "filter": "a:b"}]}
    assert stage_names(DataConfig.model_validate(values))[:4] == ("ingest", "clean", "filter", "dedup")


def test_shard_count_of_files_that_are_joined_or_cut(tmp_path, monkeypatch):
    def looked(config):
        found = survey(config, tmp_path, Runtime(tmp_path / "root"))
        return found.shards, found.steps[:2]

    source = {"type": "jsonl", "name": "x", "licence": "CC0-1.0", "paths": ["*.jsonl*"]}
    config = DataConfig.model_validate({"sources": [source], "ingest": {"shard_bytes": 1000}})
    for number in range(10):
        (tmp_path / f"{number}.jsonl").write_text("x" * 300)
    assert looked(config) == (4, ("ingest", "clean"))
    (tmp_path / "a.jsonl").write_text("x" * 5500)
    assert looked(config) == (10, ("ingest", "ingest-2"))
    (tmp_path / "a.jsonl").rename(tmp_path / "a.jsonl.gz")
    assert looked(config) == (4 + 22, ("ingest", "ingest-2"))
    elsewhere = Runtime(tmp_path / "root")
    package = {"type": "package", "name": "y", "licence": "MIT", "package": "p", "index": "debian", "files": ["*"]}
    hub = {"type": "hub", "name": "z", "licence": "MIT", "dataset": "a/b", "revision": "0" * 40, "split": "train"}
    listed = HubListing("0" * 40, (HubFile("a.parquet", 1000, ""), HubFile("b.parquet", 2000, "")))
    monkeypatch.setattr("data_pipeline.readers.items.list_hub", lambda source, runtime: listed)
    far = DataConfig.model_validate({"sources": [package, hub], "ingest": {"shard_bytes": 1000}})
    assert survey(far, tmp_path, elsewhere).shards == 1 + 4 + 8, "each file of the hub is an item"
    assert survey(config, tmp_path, elsewhere).folders == (tmp_path,)
    assert survey(far, tmp_path, elsewhere).folders == ()

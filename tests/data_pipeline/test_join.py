"""The join of keys equals a plain dictionary, in any number of ranges, and both engines give the same rows."""

import importlib.util
import os
import socket
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dedup import join
from data_pipeline.dedup.duplicates import gather
from data_pipeline.dedup.join import BAND, TEXT, URL, JoinEngine, shared_keys, write_keys
from governance.errors import MissingInput, PipelineError
from tests.governance.ray_head import head

ROOT = Path(__file__).parents[2]


def key_files(folder, seed=0, files=3, documents=200):
    """Key files whose keys repeat within and across files; and the plain truth: kind -> pairs (key, number)."""
    rng = np.random.default_rng(seed)
    paths, firsts, owners = [], [], defaultdict(list)
    for index in range(files):
        keys, rows = [], []
        for kind in (TEXT, URL, BAND):
            few = np.array([kind[len(kind) // 299 * i] for i in range(299)] + [kind[-1]])
            keys.append(rng.choice(few, documents))
            rows.append(np.arange(documents))
        keys, rows = np.concatenate(keys), np.concatenate(rows).astype(np.int32)
        paths.append(folder / f"{index}.parquet")
        firsts.append(index * documents)
        write_keys(paths[-1], keys, rows)
        for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
            owners[key].append(firsts[-1] + row)
    truth = {
        kind: sorted((key, n) for key, found in owners.items() if len(found) > 1 and key in kind for n in found)
        for kind in (TEXT, URL, BAND)
    }
    return paths, firsts, truth


def joined(paths, firsts, kind, engine, keys=600):
    parts = list(shared_keys(paths, firsts, kind, keys, engine))
    return [(int(k), int(n)) for key, number in parts for k, n in zip(key, number, strict=True)], len(parts)


@pytest.mark.parametrize("keys", [600, 10_000_000])
def test_shared_keys_equal_a_dictionary(tmp_path, keys):
    paths, firsts, truth = key_files(tmp_path)
    engine = JoinEngine("duckdb", 256, tmp_path / "scratch")
    for kind, wanted in truth.items():
        found, parts = joined(paths, firsts, kind, engine, keys)
        assert found == wanted
        assert (parts == 1) == (keys == 600)


@pytest.mark.parametrize("a_file", [1, 150, 100_000])
def test_many_files_are_merged_before_they_are_joined_in_ranges(tmp_path, monkeypatch, a_file):
    """Each merged file has as many keys as fit the limit, here `a_file`."""
    paths, firsts, truth = key_files(tmp_path, files=9, documents=60)
    monkeypatch.setattr(join, "FILES_PER_RANGE", 0)
    monkeypatch.setattr(join, "SORTED_BYTES_PER_KEY", 256 * join.ENGINE_SHARE * (1 << 20) / a_file)
    engine, merged = JoinEngine("duckdb", 256, tmp_path / "scratch"), []
    run = join._duckdb
    monkeypatch.setattr(join, "_duckdb", lambda names, *more: merged.append(len(names)) or run(names, *more))
    for kind, wanted in truth.items():
        assert joined(paths, firsts, kind, engine, 10_000_000)[0] == wanted
    assert merged == [{1: 9, 150: 5, 100_000: 1}[a_file]] * 3
    assert not list(engine.scratch.glob("*"))


def test_daft_names_an_address_at_which_no_cluster_answers(tmp_path, monkeypatch):
    """Ray itself tries for minutes."""
    pytest.importorskip("daft")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    paths, firsts, _ = key_files(tmp_path)
    with pytest.raises(MissingInput, match=r"--engine daft: no Ray cluster at '127.0.0.1:1' .*refused.*ray start"):
        joined(paths, firsts, TEXT, JoinEngine("daft", 256, tmp_path))


def end_at_once(*words):
    os._exit(1)  # as Ray ends a process that has lost its head


def serve_without_ray(*words):
    import daft

    daft.set_runner_ray = lambda *words, **options: None
    join._serve(*words)


def test_the_loss_of_the_cluster_in_a_join_is_an_error(tmp_path, monkeypatch):
    pytest.importorskip("daft")
    paths, firsts, truth = key_files(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        monkeypatch.setattr(join, "_serve", serve_without_ray)
        assert joined(paths, firsts, TEXT, JoinEngine("daft", 256, tmp_path), 10_000_000)[0] == truth[TEXT]
        monkeypatch.setattr(join, "_serve", end_at_once)
        with pytest.raises(PipelineError, match=r"the Ray cluster at .* went away .*Finished shards are kept"):
            joined(paths, firsts, TEXT, JoinEngine("daft", 256, tmp_path))


def test_the_result_of_daft_is_that_of_duckdb(tmp_path):
    pytest.importorskip("daft")
    paths, firsts, truth = key_files(tmp_path)
    for kind, wanted in truth.items():
        assert joined(paths, firsts, kind, JoinEngine("daft", 256, tmp_path))[0] == wanted


def test_nothing_to_join(tmp_path):
    assert joined([], [], BAND, JoinEngine("duckdb", 256, tmp_path))[0] == []
    write_keys(tmp_path / "empty.parquet", np.zeros(0, np.int64), np.zeros(0, np.int32))
    assert joined([tmp_path / "empty.parquet"], [0], BAND, JoinEngine("duckdb", 256, tmp_path))[0] == []


def test_a_file_that_is_no_key_file_is_reported_in_duckdbs_words(tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match="failed in DuckDB"):
        joined([tmp_path / "torn.parquet"], [0], BAND, JoinEngine("duckdb", 256, tmp_path), 10_000_000)


def test_a_file_that_is_no_key_file_is_named_where_keys_are_sorted(tmp_path):
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(PipelineError, match=r"torn\.parquet: its keys cannot be read"):
        joined([tmp_path / "torn.parquet"], [0], BAND, JoinEngine("duckdb", 256, tmp_path))


def test_groups_of_the_same_members_are_one_and_old_ones_are_left_out():
    ignored = np.zeros(10, bool)
    ignored[3] = True
    ranges = [
        (np.array([1, 1, 2, 2, 2, 4, 4]), np.array([5, 6, 5, 6, 7, 0, 1])),  # 0 and 1 are of an earlier corpus
        (np.array([8, 8, 9, 9, 9, 10, 10]), np.array([5, 6, 3, 8, 9, 3, 4])),  # 3 was removed there
    ]
    groups = gather(ranges, ignored, 2)
    assert np.split(groups.members, groups.ends[:-1])[0].tolist() == [5, 6]
    assert [part.tolist() for part in np.split(groups.members, groups.ends[:-1])] == [[5, 6], [5, 6, 7], [8, 9]]
    assert groups.labels.tolist() == [0, 0, 1, 1, 1, 2, 2]


DEDUP_ON = """
    import sys
    from pathlib import Path
    import pyarrow as pa
    from data_pipeline.dedup.dedup import DedupConfig, dedup
    from data_pipeline.documents import DOCUMENT_SCHEMA, write_table
    from governance.manifest import Manifest, describe
    from governance.stage import Runtime
    from governance.workers import take_turns

    root, engine, worker, workers, outputs = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]), []
    for shard in range(3):
        texts = [" ".join(f"w{(i * 31 + j) % 997} v{i % 40 * j}" for j in range(120)) for i in range(shard, 150, 3)]
        rows = [dict.fromkeys(DOCUMENT_SCHEMA.names, "") | {"id": f"{shard}#{i}", "text": text, "position": i}
                for i, text in enumerate(texts + texts[:3])]
        path = root / "clean" / ("b" * 16) / "documents" / f"{shard}.parquet"
        if not path.exists():
            write_table(path, pa.Table.from_pylist(rows, schema=DOCUMENT_SCHEMA))
        outputs.append(describe(path, root))
    corpus = Manifest(stage="clean", version=1, key="b" * 64, config={}, inputs=(), stats={}, run={},
                      outputs=tuple(outputs))
    runtime = Runtime(root=root, engine=engine, worker=(worker, workers))
    made = take_turns(runtime, lambda turn: dedup(corpus, DedupConfig(), turn))
    print(made.digest, made.stats["documents_kept"], made.stats["documents_in"])
"""


def start(root, engine, worker=(0, 1)):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(DEDUP_ON), str(root), engine, *map(str, worker)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def message(process):
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors[-2000:]
    return output.splitlines()[-1]


def dedup_on(root, engine):
    return message(start(root, engine))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The answer of one worker on DuckDB."""
    return dedup_on(tmp_path_factory.mktemp("one"), "duckdb")


@pytest.mark.slow
def test_the_artifact_is_the_same_of_one_worker_and_of_an_array(tmp_path, wanted):
    array = [start(tmp_path / "array", "duckdb", (worker, 3)) for worker in range(3)]
    assert [message(process) for process in array] == [wanted] * 3


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_the_artifact_is_the_same_on_duckdb_on_daft_and_on_ray(tmp_path, wanted, monkeypatch):
    assert wanted.split()[1] < wanted.split()[2]
    assert dedup_on(tmp_path / "daft", "daft") == wanted
    with head(monkeypatch):
        assert dedup_on(tmp_path / "ray", "daft") == wanted
        assert dedup_on(tmp_path / "shards", "ray") == wanted

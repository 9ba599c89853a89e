"""Shards made on a Ray cluster: the bytes of one process, workers killed, a head that goes away."""

import functools
import importlib.util
import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from governance.config import Section
from governance.errors import ConfigError, MissingInput, PipelineError
from governance.files import write_bytes
from governance.hooks import Hooks
from governance.manifest import Manifest, read_manifest, verify
from governance.parallel import Shard, ShardMade, close_pool, map_shards, sum_stats
from governance.ray_cluster import ray_connection
from governance.ray_cluster.ray_connection import Conditions
from governance.stage import Made, Recipe, Runtime, run_stage
from tests.governance.ray_head import head

SHARDS = 12
KILLED = ("text 00", "text 07")


def twice(section, payload, path_of) -> ShardMade:
    """The text twice; where the text names a file that is missing, make it and be killed."""
    text, killed = payload
    if killed is not None and not killed.exists():
        killed.write_bytes(b"")
        os.kill(os.getpid(), signal.SIGKILL)
    write_bytes(path_of("texts"), text.encode() * 2)
    return ShardMade({"texts": path_of("texts")}, {"bytes": 2 * len(text)})


def dawdle(section, payload, path_of) -> ShardMade:
    """As `twice`, but all but the first shards take until the head is gone."""
    if payload[0] > "text 01":
        time.sleep(3600)
    return twice(section, payload, path_of)


def refuse(section, payload, path_of) -> ShardMade:
    raise ConfigError(f"{payload[0]}: is not what we want")


def doubled(runtime: Runtime, function=twice, killed: Path | None = None) -> Manifest:
    recipe = Recipe("doubled", 1, Section())

    def make(folder: Path) -> Made:
        texts = [f"text {i:02d}" for i in range(SHARDS)]
        shards = [Shard(text, (text,), (text, killed / text if killed and text in KILLED else None)) for text in texts]
        done = map_shards(recipe, function, shards, folder, runtime, ".txt")
        return Made([shard.outputs["texts"] for shard in done], sum_stats([shard.stats for shard in done]))

    return run_stage(recipe, [], runtime, make)


@pytest.fixture
def pool():
    close_pool()
    yield
    close_pool()


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="ray is not installed: pip install 'assay-pretrain[ray]'"
)
def test_a_cluster_makes_what_one_process_makes_and_loses_nothing_when_it_goes(tmp_path, monkeypatch):
    wanted = doubled(Runtime(tmp_path / "one"))
    with head(monkeypatch) as group:
        root, killed = tmp_path / "ray", tmp_path / "killed"
        killed.mkdir()
        found = doubled(Runtime(root, engine="ray"), killed=killed)
        assert {path.name for path in killed.iterdir()} == {*KILLED}, "two shards killed their process once"
        assert found.digest == wanted.digest
        assert verify(read_manifest(root / found.path), root) == []
        with pytest.raises(ConfigError, match="is not what we want"):
            doubled(Runtime(tmp_path / "refused", engine="ray"), function=refuse)
        close_pool()
        assert not list(root.glob(".ray.tmp~*"))
        made = []

        def tally(line: str) -> None:
            made.append(line)
            if len(made) == 2:
                os.killpg(group, signal.SIGKILL)

        lost = Runtime(tmp_path / "lost", engine="ray", hooks=Hooks(tally=tally))
        with pytest.raises(PipelineError, match=r"the Ray cluster at .* went away .*Finished shards are kept"):
            doubled(lost, function=dawdle)
        assert len(made) == 2
    kept = {path: path.stat().st_mtime_ns for path in lost.root.glob("doubled/*/texts/*")}
    assert len(kept) == 2
    assert doubled(Runtime(lost.root)).digest == wanted.digest
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in lost.root.glob("doubled/*/texts/*")}.items()


def test_an_address_at_which_no_cluster_answers_is_named(tmp_path, monkeypatch, pool):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(MissingInput, match=r"no Ray cluster at '127.0.0.1:1' .*refused.*ray start --head"):
        doubled(Runtime(tmp_path, engine="ray"))
    assert not list(tmp_path.glob(".ray.tmp~*"))


class TwoWords(Exception):
    """An exception that can be pickled, and not read again."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail(kind):
    if kind == "two words":
        raise TwoWords("one", "two")
    raise ConfigError("is not what we want")


def test_an_error_of_a_task_arrives_with_its_traceback(tmp_path):
    """Also where its class cannot be pickled: nobody must wait for it for ever."""
    here = Conditions(str(tmp_path), ray_connection.metadata.version("assay-pretrain"), "driver")
    for kind, error, text in (("ours", ConfigError, "is not what"), ("two words", RuntimeError, "TwoWords: one two")):
        result, raised = pickle.loads(ray_connection._task(pickle.dumps((fail, kind)), here))
        assert result is None
        assert type(raised) is error
        assert text in str(raised)
        assert "in fail" in "".join([str(raised), *getattr(raised, "__notes__", [])])


def test_a_node_with_another_version_or_another_disk_makes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_connection, "_SEEN_SECONDS", 0.0)
    with pytest.raises(ConfigError, match=r"has Assay .*, and driver has 0\.0\.0"):
        ray_connection._checked(Conditions(str(tmp_path / "there"), "0.0.0", "driver"))
    here = functools.partial(Conditions, version=ray_connection.metadata.version("assay-pretrain"), host="driver")
    with pytest.raises(MissingInput, match=r"does not see .*/elsewhere of driver"):
        ray_connection._checked(here(str(tmp_path / "elsewhere" / "ray-driver~1~a")))
    ray_connection._checked(here(str(tmp_path)))

"""The graph of jobs: no cycles, each job after its inputs, arrays within the cluster's bounds, every shard once."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm.config import SlurmConfig
from slurm.graph import PlannedRun, plan, tasks_of

STEPS = ("ingest", "clean", "dedup", "dedup-2", "encode")
CONFIGS = st.builds(
    SlurmConfig,
    shards_per_task=st.integers(1, 50),
    max_tasks=st.integers(0, 2000),
    throttle=st.integers(0, 30),
    chain=st.integers(1, 5),
    gpus_per_node=st.integers(0, 8),
    nodes=st.integers(1, 64),
)
SIZES = st.integers(1, 5000)


def work(shards, steps=STEPS):
    return PlannedRun("run", tuple(steps), shards, ("run.toml", "--root", "/shared/run"))


def planned(shards, config, size, steps=STEPS):
    return plan(work(shards, steps), config, size)


@given(CONFIGS, st.integers(1, 10_000), SIZES, st.integers(0, 5))
def test_each_job_is_behind_those_that_it_waits_for(config, shards, size, steps):
    jobs = planned(shards, config, size, STEPS[:steps])
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for index, job in enumerate(jobs):
        assert {name for _, name in job.after} <= set(names[:index])  # so there is no cycle


@given(CONFIGS, st.integers(1, 10_000), SIZES)
def test_what_a_job_needs_is_done_before_it(config, shards, size):
    jobs = {job.name: job for job in planned(shards, config, size)}

    def surely_done(name):  # all jobs that have succeeded when `name` begins
        ok = [before for condition, before in jobs[name].after if condition == "afterok"]
        return set(ok).union(*(surely_done(before) for before in ok)) if ok else set()

    last = "train" if config.chain == 1 else f"train-{config.chain}"
    assert {"data", "audit", last} <= surely_done("evaluate")
    assert "audit" in surely_done(last)
    assert surely_done("report") >= {"data"}
    assert "audit" not in surely_done("report")  # the report is written when the gate is closed, too
    arrays = [name for name, job in jobs.items() if job.tasks]
    for first, second in pairwise(arrays):
        assert {first, f"{first}-join"} <= surely_done(second)
    assert {*arrays, *(f"{name}-join" for name in arrays)} <= surely_done("data")
    assert not arrays or "sources" in surely_done(arrays[0])


@given(CONFIGS, st.integers(1, 10_000), SIZES)
def test_an_array_fits_the_cluster(config, shards, size):
    tasks = tasks_of(shards, config, size)
    assert 1 <= tasks <= size
    assert not config.max_tasks or tasks <= config.max_tasks
    for job in planned(shards, config, size):
        [array] = [option for option in job.options if option.startswith("--array=")] or [None]
        assert (array is not None) == bool(job.tasks) == (job.kind == "share")
        if array:
            assert array == f"--array=0-{tasks - 1}" + (f"%{config.throttle}" if config.throttle else "")


@given(st.integers(1, 1000), st.integers(1, 20))
def test_a_task_makes_no_more_than_requested_where_the_cluster_allows_it(shards, each):
    tasks = tasks_of(shards, SlurmConfig(shards_per_task=each), 10_000)
    assert tasks * each >= shards


def test_five_thousand_shards_are_planned_in_as_many_tasks_as_an_array_may_have():
    jobs = planned(5000, SlurmConfig(throttle=20), 1001)
    [ingest] = [job for job in jobs if job.name == "ingest"]
    assert ingest.tasks == 1001
    assert "--array=0-1000%20" in ingest.options
    by_default = {job.name: job for job in planned(5000, SlurmConfig(), 1001)}
    assert "--array=0-1000%100" in by_default["ingest"].options


def test_a_single_shard_needs_no_arrays():
    names = [job.name for job in planned(1, SlurmConfig(), 1001)]
    assert names == ["data", "audit", "train", "evaluate", "report"]


def test_who_requests_what():
    config = SlurmConfig(
        partition="gpu", data_partition="cpu", account="a", nodes=4, gpus_per_node=8, cpus_per_task=6, memory="64G",
        data_cpus=16, time_limit="2:00:00", data_time_limit="30", mail_user="me", constraint="a100", signal_seconds=90,
    )  # fmt: skip
    jobs = {job.name: set(job.options) for job in planned(40, config, 1001)}
    training = {
        "--partition=gpu", "--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--cpus-per-task=6", "--mem=64G",
        "--time=2:00:00", "--signal=USR1@90", "--constraint=a100", "--mail-user=me", "--requeue",
    }  # fmt: skip
    assert training <= jobs["train"]
    data = {"--partition=cpu", "--nodes=1", "--cpus-per-task=16", "--time=30", "--signal=B:USR1@90", "--account=a"}
    assert data <= jobs["clean"] & jobs["data"] & jobs["audit"]
    options = {option.split("=")[0] for option in jobs["clean"] | jobs["audit"]}
    assert not options & {"--gpus-per-node", "--constraint", "--mem", "--mail-user", "--qos"}
    assert {"--partition=gpu", "--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1"} <= jobs["evaluate"]
    assert all("--kill-on-invalid-dep=yes" in options for options in jobs.values())


@pytest.mark.parametrize("chain", [1, 3])
def test_a_chain_goes_on_behind_whatever_the_link_before_came_to(chain):
    jobs = {job.name: job for job in planned(1, SlurmConfig(chain=chain), 1001)}
    links = [name for name in jobs if name.startswith("train")]
    assert len(links) == chain
    assert all(("afterok", "audit") in jobs[name].after for name in links)
    for before, link in pairwise(links):
        assert ("afterany", before) in jobs[link].after
    assert jobs["evaluate"].after == (("afterok", links[-1]),)


def test_data_may_be_charged_elsewhere():
    def charged(**settings):
        jobs = {job.name: job for job in planned(1, SlurmConfig(account="lab", qos="long", **settings), 1001)}
        picked = ("--account", "--qos")
        return {name: [word for word in jobs[name].options if word.startswith(picked)] for name in ("train", "audit")}

    lab = ["--account=lab", "--qos=long"]
    assert charged() == {"train": lab, "audit": lab}
    assert charged(data_account="cpu", data_qos="short") == {
        "train": ["--account=lab", "--qos=long"], "audit": ["--account=cpu", "--qos=short"],
    }  # fmt: skip

"""Entries in the queue are counted against the site's limits before the first job is queued."""

import pytest

from slurm import commands
from slurm.config import SlurmConfig
from slurm.graph import PlannedRun, plan
from slurm.submit_preflight import entries_of, over_limits

QOS = "normal|%s||\n"


def jobs_of(tasks=100, **settings):
    config = SlurmConfig(max_tasks=tasks, **settings)
    return plan(PlannedRun("run", ("ingest", "clean"), 1000, ("run.toml",)), config, 1001), config


@pytest.fixture
def site(monkeypatch):
    """The limits of a site, and the queries about them."""
    limits = {"maxsubmit": "", "others": "", "pu": "", "MaxJobCount": "10000", "mine": 0}

    def ask(*words):
        if words[0] == "squeue":
            return "1\n" * limits["mine"]
        if words[0] == "scontrol":
            return f"ClusterName = here\nMaxJobCount = {limits['MaxJobCount']}\n"
        if "user" in words:
            return "lab\n"
        if "qos" in words:
            return QOS % limits["pu"]
        rows = [("here", "lab", limits["maxsubmit"], "")]
        rows += [
            (*row[:2], limits["others"], row[2])
            for row in (("here", "guests", ""), ("here", "lab", "debug"), ("old", "lab", ""))
        ]
        return "".join(
            f"{account}|{most}|||{partition}|normal\n"
            for cluster, account, most, partition in rows
            if {f"cluster={cluster}", f"account={account}"} <= set(words)
        )

    monkeypatch.setattr(commands, "_run", ask)
    return limits


def output(jobs, config):
    return list(over_limits(jobs, {job.name: entries_of([job]) for job in jobs}, config))


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("maxsubmit", "the account lab (MaxSubmitJobs)"),
        ("pu", "the qos normal (MaxSubmitJobsPerUser)"),
        ("MaxJobCount", "the cluster (MaxJobCount)"),
    ],
)
def test_what_does_not_fit_says_with_which_setting_it_does(site, limit, name):
    jobs, config = jobs_of()
    assert (entries_of(jobs), output(jobs, config)) == (208, [])
    site[limit] = "50"
    [line] = output(jobs, config)
    assert line.startswith(f"208 entries in the queue (jobs and tasks of arrays), of which {name} allows 50.")
    assert "slurm.max_tasks = 21" in line
    smaller, config = jobs_of(21)
    assert entries_of(smaller) == 50
    assert output(smaller, config) == []


def test_what_else_one_has_queued_is_warned_of(site, caplog):
    jobs, config = jobs_of()
    site |= {"pu": "300", "mine": 100}
    assert output(jobs, config) == []
    assert "you have 100 already" in caplog.text


def test_of_a_retry_only_what_is_submitted_counts(site):
    jobs, config = jobs_of()
    site["pu"] = "50"
    assert list(over_limits(jobs, {job.name: 1 for job in jobs}, config)) == []


def test_limits_of_other_accounts_partitions_and_clusters_do_not_count(site):
    site["others"] = "1"
    jobs, config = jobs_of(partition="long")
    assert output(jobs, config) == []
    jobs, config = jobs_of(partition="debug")
    assert "the account lab (MaxSubmitJobs) allows 1" in output(jobs, config)[0]

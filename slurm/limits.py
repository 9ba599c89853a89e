"""Queue entries of a run against the site's limits.

An entry is a job, or a task of an array. MaxJobCount bounds a cluster's, MaxSubmitJobs and GrpSubmitJobs of an
association or a QOS a user's or an account's. Other entries of the user may end in time, so they only cause a warning.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping, Sequence

from governance.log import get_logger
from slurm import commands as tools
from slurm.config import SlurmConfig
from slurm.graph import SlurmJob


def entries_of(jobs: Sequence[SlurmJob], tasks: int | None = None) -> int:
    """Entries of these jobs in the queue.

    With `tasks` they are counted as if the arrays had at most so many tasks.
    """
    most = max((job.tasks for job in jobs), default=0) if tasks is None else tasks
    return sum(max(1, min(job.tasks, most)) for job in jobs)


def over_limits(jobs: Sequence[SlurmJob], entries: Mapping[str, int], config: SlurmConfig) -> Iterator[str]:
    """Limits that these jobs exceed, each with a setting that fits.

    `entries` states for each job, by its name, how many are submitted now.
    """
    model = [job for job in jobs if job.kind in ("train", "evaluate")]
    data = [job for job in jobs if job not in model]
    bounds = [(jobs, "the cluster (MaxJobCount)", int(tools.settings().get("MaxJobCount", "0") or 0))]
    user = getpass.getuser()
    for of_qos, qos, account in (
        (model, config.qos, config.account),
        (data, config.data_qos or config.qos, config.data_account or config.account),
    ):
        same = (config.data_qos or config.qos, config.data_account or config.account) == (config.qos, config.account)
        among = jobs if same else of_qos
        bounds += [(among, name, most) for name, most in tools.submit_limits(user, account, qos).items()]
    warned: set[str] = set()
    for among, name, most in bounds:
        needed = sum(entries[job.name] for job in among)
        if not most or name in warned:
            continue
        warned.add(name)
        if needed > most:
            found = f"{needed:,} entries in the queue (jobs and tasks of arrays), of which {name} allows {most:,}."
            yield f"{found} {_mend(among, most)}"
        elif (others := tools.mine()) + needed > most:
            get_logger(__name__).warning(
                "%s allows %s entries in the queue; this run has %s, and you have %s already: sbatch may refuse it",
                name, f"{most:,}", f"{needed:,}", f"{others:,}",
            )  # fmt: skip


def _mend(jobs: Sequence[SlurmJob], most: int) -> str:
    arrays = sum(job.tasks > 0 for job in jobs)
    tasks = (most - (len(jobs) - arrays)) // arrays if arrays else 0
    if tasks < 1:
        return "Request another qos or account, or for a higher limit."
    return (
        f"Set slurm.max_tasks = {tasks:,} (or a larger slurm.shards_per_task): then it has {entries_of(jobs, tasks):,}."
    )

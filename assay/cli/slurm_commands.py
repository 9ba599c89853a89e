"""Handlers of `assay slurm ...`.

The package `slurm` knows neither data nor training; this module looks up what it needs of them, as plain values.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from assay.cli.output import say, write_out
from assay.cli.run_commands import Arguments, argv_of, load, read_run
from assay.config import LoadedRun
from assay.slurm_folders import container_mounts, fetch_here, folders_read, freeze_run, make_key
from assay.training_recipe import steps_before, training_folder
from data_pipeline.prepare import Survey, survey
from governance.energy import ledger
from governance.energy.intensity import read_intensity
from governance.errors import ClusterError, ConfigError, MissingInput, Occupied, PipelineError, StorageError
from governance.files import remove_file, write_json
from governance.log import get_logger
from governance.manifest import FILE_NAME
from governance.stage import Runtime
from pretrain.distributed.process_group import Ranks, read_ranks, rendezvous_name
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.node_checks import NodeFinding, check_node, save_bytes, say_at_once
from slurm import actions, carbon_aware, commands, frozen, job_states, rehearsal
from slurm.accounting import account
from slurm.config import SlurmConfig, minutes, with_site
from slurm.graph import PlannedRun, SlurmJob, plan
from slurm.job_states import WATCH_SECONDS, JobRow, View
from slurm.render import render as fill_in
from slurm.status import Progress, describe, settled
from slurm.submit import JobRequest, SubmittedJob, keep_scripts, submission_lock
from slurm.submit import submit as hand_over
from slurm.submit_preflight import check_settings, megabytes, refuse, with_cores

_WATCH_SECONDS = 10.0
_CANCEL_PATIENCE_SECONDS = 120.0
"""A submission of thousands of jobs to a busy controller, whose checks may wait for a node, lasts minutes."""
_LATEST_HOURS = 24.0
"""Default limit of the wait for greener hours: forecasts rarely reach further."""
_FALLBACK_ARRAY_SIZE = 1001
"""Slurm's own default of MaxArraySize, for a script that is only looked at."""


@dataclass(frozen=True)
class Submission:
    """A submission: the typed command, the run, its section and its sources."""

    arguments: Arguments
    loaded: LoadedRun
    runtime: Runtime
    config: SlurmConfig
    sources: Survey

    def jobs(self, max_array_size: int) -> list[SlurmJob]:
        """The run's graph."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.arguments.config.stem).strip("-") or "run"
        argv = tuple(argv_of(self.arguments, self.runtime))
        counts = _node_counts(self.loaded, self.runtime, self.config)
        work = PlannedRun(name, self.sources.steps, self.sources.shards, argv, counts)
        return plan(work, self.config, max_array_size)


def render(arguments: Arguments) -> None:
    """The scripts of all jobs, or of one."""
    loaded, runtime = load(arguments, "slurm submit")
    config = _section(loaded)
    try:
        size = commands.max_array_size()
    except ClusterError:
        size = _FALLBACK_ARRAY_SIZE
    sources = _sources(loaded, runtime)
    given = container_mounts(loaded, sources.folders, config)
    jobs = Submission(arguments, loaded, runtime, config, sources).jobs(size)
    selected = [job for job in jobs if arguments.job in ("", job.name)]
    if not selected:
        raise ConfigError(f"there is no job {arguments.job!r}; there are: {', '.join(job.name for job in jobs)}")
    for job in selected:
        if not arguments.job:
            after = ", ".join(f"{condition} {name}" for condition, name in job.after)
            say(f"# ---- {job.name}{f' (array of {job.tasks})' * bool(job.tasks)}{f' after {after}' * bool(after)}")
        script = fill_in(job, arguments.config.absolute(), runtime.root, config, given)
        facts = {"name": job.name, "tasks": job.tasks, "after": job.after, "script": script}
        say(script.removesuffix("\n"), jobs=[facts])


def submit(arguments: Arguments) -> int:
    """Submit the whole run, unless it is queued already.

    With `--local`, returns the exit status of the first job that failed.
    """
    from assay.start_preflight import require_site_rules

    loaded, runtime = load(arguments, "slurm submit")
    require_site_rules(loaded)
    submission, jobs = _checked_plan(arguments, loaded, runtime)
    config = submission.config
    start = _begin_of(arguments, config)
    if start is not None and arguments.local:
        raise ConfigError("--carbon-aware is for a queue; a rehearsal (--local) begins at once")
    with submission_lock(runtime.root):
        view = job_states.gather(runtime.root)
        if view is not None and any(row.count("waiting", "running", "unknown") for row in view.rows):
            typed = _config_words(arguments)
            queued = [row.name for row in view.rows if row.count("waiting", "running", "unknown")]
            raise ConfigError(
                f"{runtime.root}: jobs of this run are already queued or running: {', '.join(queued)}. See them with: "
                f"assay slurm status {typed}; end them with: assay slurm cancel {typed}"
            )
        requests = [JobRequest(job) for job in jobs]
        _refuse(submission, requests)
        _say_plan(loaded, runtime, config)
        fetch_here(loaded, runtime, _config_words(arguments), requested=arguments.fetch, local=arguments.local)
        freeze_run(loaded, runtime.root, config, take_edits=arguments.take_edits)
        _refuse_edited_meanwhile(arguments, loaded)
        lines = _queue(submission, requests, start[0] if start else None)
        chosen = runtime.root / "slurm" / "carbon.json"
        if start is None:
            remove_file(chosen)  # it is from an earlier submission
        else:
            _, words, evidence = start
            write_json(chosen, evidence)
            say(words, carbon=evidence)
    return _rehearse(submission, lines, requests)


def _refuse_edited_meanwhile(arguments: Arguments, loaded: LoadedRun) -> None:
    """Read the run's files again, once they are kept.

    Raises:
        ConfigError: what was kept is not what was checked.
    """
    again = read_run(arguments)
    if (again.config, again.policy) != (loaded.config, loaded.policy):
        raise ConfigError(f"{loaded.path}: was edited while it was submitted; nothing was queued. Submit it again.")


def _say_plan(loaded: LoadedRun, runtime: Runtime, config: SlurmConfig) -> None:
    """Print the plan's line and its warnings.

    Raises:
        ConfigError: `slurm.cluster` names no cluster, or a wrong file.
    """
    if not config.cluster:
        return
    from assay.dry_run import online_teacher_of
    from assay.planning.plan_budget import submission_lines
    from assay.start_preflight import corpus_figures

    vocabulary, _, document_tokens, _ = corpus_figures(loaded, runtime)
    distils = loaded.config.train.distillation is not None
    teacher = online_teacher_of(loaded, runtime, vocabulary)[0] if distils else None
    begun = steps_before(loaded, runtime.root)
    line, warnings = submission_lines(loaded, vocabulary, config, teacher, document_tokens, begun)
    say(line, plan=line)
    for warning in warnings:
        get_logger(__name__).warning("%s", warning)


def _begin_of(arguments: Arguments, config: SlurmConfig) -> tuple[datetime | None, str, dict[str, Any]] | None:
    """Start time by the given forecast; None without one.

    Returns (time, words, evidence); a time of None means at once.

    Raises:
        ConfigError: an option requires another, or the forecast is wrong or too short.
    """
    if arguments.carbon_aware is None:
        if arguments.latest or arguments.expected:
            raise ConfigError("--latest and --expected require --carbon-aware FORECAST.csv")
        return None

    limit = minutes(config.time_limit) * config.chain
    if arguments.expected is None and limit in (0, float("inf")):
        raise ConfigError(
            f"slurm.time_limit = {config.time_limit!r} says nothing about how long the run lasts: give --expected HOURS"
        )
    lasts = timedelta(hours=arguments.expected) if arguments.expected else timedelta(minutes=limit)
    forecast = read_intensity(arguments.carbon_aware)
    now = datetime.now(UTC).replace(microsecond=0)
    latest = now + timedelta(hours=arguments.latest or _LATEST_HOURS)
    start = carbon_aware.greenest(forecast.start, forecast.step, forecast.grams_per_kwh, now, latest, lasts)
    evidence = {
        "asked": now.isoformat(),
        "at_once_grams_per_kwh": start.at_once_grams_per_kwh,
        "begin": start.begin.isoformat(),
        "expected_hours": lasts / timedelta(hours=1),
        "forecast": arguments.carbon_aware.name,
        "forecast_sha256": forecast.sha256,
        "grams_per_kwh": start.grams_per_kwh,
        "latest": latest.isoformat(),
        "latest_covered": start.last.isoformat(),
    }
    return start.begin if start.begin > now else None, carbon_aware.in_words(start, now), evidence


def retry(arguments: Arguments) -> int:
    """Submit missing parts, and those that depend on them, again."""
    loaded, runtime = load(arguments, "slurm submit")
    submission, jobs = _checked_plan(arguments, loaded, runtime)
    with submission_lock(runtime.root):
        view = job_states.gather(runtime.root) or _no_jobs(runtime)
        if not arguments.take_edits:
            frozen.refuse_unasked(runtime.root, _config_words(arguments))
        requests, stale = actions.missing(view, jobs)
        if not requests:
            if arguments.take_edits:
                freeze_run(loaded, runtime.root, submission.config, take_edits=True)
            say("nothing is missing" + "; waiting jobs accept the edits" * arguments.take_edits, jobs=[])
            return 0
        _refuse(submission, requests)
        freeze_run(loaded, runtime.root, submission.config, take_edits=arguments.take_edits)
        _refuse_edited_meanwhile(arguments, loaded)
        commands.cancel(stale)  # only now: a refused submission must not lose waiting jobs
        lines = _queue(submission, requests)
    return _rehearse(submission, lines, requests)


def status(arguments: Arguments) -> None:
    """Print the state of the jobs, once or until all have ended."""
    loaded, runtime = load(arguments, "slurm submit")
    try:
        sources = _sources(loaded, runtime)  # once: it queries servers for their files
        data = (sources.steps, sources.shards)
    except PipelineError:  # the status must appear even when a source has vanished
        data = ((), 0)
    while True:
        view, lines = _status_lines(arguments, loaded, runtime, data, WATCH_SECONDS if arguments.watch else 0.0)
        if arguments.watch and sys.stdout.isatty() and not arguments.json:
            sys.stdout.write("\x1b[H\x1b[2J")
        ended = not arguments.watch or settled(view)
        say("\n".join(lines), jobs=[_job_facts(row) for row in view.rows] if ended else [])
        if ended:
            return
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)


def _job_facts(row: JobRow) -> dict[str, Any]:
    states = Counter(part.kind for part in row.parts)
    return {"name": row.name, "kind": row.kind, "after": row.after, "states": states, "joules": row.joules}


def cancel(arguments: Arguments) -> None:
    """Cancel all jobs that wait or run."""
    _, runtime = load(arguments, "slurm submit")
    if job_states.gather(runtime.root) is None and not (runtime.root / "slurm").is_dir():
        _no_jobs(runtime)
    with contextlib.ExitStack() as alone:
        try:  # a submission is cancelled whole
            alone.enter_context(submission_lock(runtime.root, _CANCEL_PATIENCE_SECONDS))
        except StorageError:  # a full disk, where no lock can be had, must not prevent a cancellation
            pass
        except Occupied:
            get_logger(__name__).warning(
                "a submission has not ended in %d s; what it has queued so far is cancelled. Look again with status",
                _CANCEL_PATIENCE_SECONDS,
            )
        ended = actions.cancel(job_states.gather(runtime.root) or _no_jobs(runtime), runtime.root)
    say(f"cancelled: {', '.join(ended)}" if ended else "no job waits or runs", cancelled=list(ended))


def logs(arguments: Arguments) -> None:
    """Print a job's log, once or as it grows."""
    _, runtime = load(arguments, "slurm submit")
    view = job_states.gather(runtime.root) or _no_jobs(runtime)
    row, path = actions.log_of(view, arguments.job, runtime.root, arguments.attempt, arguments.rank)
    if not arguments.follow:
        _print_log(arguments, row.name, path)
        return

    def live() -> bool:
        now = (job_states.gather(runtime.root, WATCH_SECONDS) or _no_jobs(runtime)).row(row.name)
        return now is not None and now.count("waiting", "running", "unknown") > 0

    actions.follow(path, live, target=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        _print_log(arguments, row.name, path)


def _print_log(arguments: Arguments, job: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    if arguments.json:
        say("", job=job, path=path, text=text)
    else:
        write_out(text)


def preflight(arguments: Arguments) -> None:
    """The checks of this node, before training."""
    from assay.pipeline import corpus

    loaded, runtime = load(arguments, "data prepare")
    folder = _training_folder(loaded, runtime)
    if folder is not None and (folder / FILE_NAME).exists():
        say(f"preflight: {folder} is finished; no check is needed", finished=folder, checks=[])
        return
    tokens = corpus(loaded, replace(runtime, make=False))["encode"]
    config, section = loaded.config, _section(loaded)
    nodes = read_ranks()  # one process per node
    ranks = Ranks(0, nodes.world_size * section.tasks_per_node, 0, section.tasks_per_node)
    vocabulary = int(tokens.stats["vocabulary_size"])
    needed = save_bytes(config.recipe, vocabulary, ranks.world_size)
    hardware = Hardware(ranks, gpus=section.gpus_per_node)

    def print_all(text: str, findings: Sequence[NodeFinding]) -> None:
        if arguments.json:
            say("", checks=[asdict(finding) for finding in findings])
        else:
            say_at_once(text)

    check_node(config.engine, hardware, needed, runtime.root, nodes, rendezvous_name(), print_all)


def _section(loaded: LoadedRun) -> SlurmConfig:
    return with_site(loaded.config.slurm, loaded.folder)


def _checked_plan(arguments: Arguments, loaded: LoadedRun, runtime: Runtime) -> tuple[Submission, list[SlurmJob]]:
    """The submission and its graph, once its training could start."""
    config = _section(loaded)
    if not arguments.local:
        config, words = with_cores(config, commands.partitions().values(), commands.nodes())  # cores for each rank
        if words:
            get_logger(__name__).warning("%s", words)
    _refuse_start(loaded, runtime, config)
    submission = Submission(arguments, loaded, runtime, config, _sources(loaded, runtime))
    return submission, submission.jobs(_FALLBACK_ARRAY_SIZE if arguments.local else commands.max_array_size())


def _sources(loaded: LoadedRun, runtime: Runtime) -> Survey:
    return survey(loaded.config.data, loaded.folder, runtime)


def _refuse_start(loaded: LoadedRun, runtime: Runtime, config: SlurmConfig) -> None:
    """Refuse what training would refuse on the requested nodes.

    Raises:
        PipelineError: the start's own error class and message.
    """
    from assay.start_preflight import on_nodes, refuse_start

    a_node, engine = config.tasks_per_node, loaded.config.engine
    ranks = Ranks(0, config.nodes * a_node, 0, a_node)
    memory, of_gpu = megabytes(config.memory) << 20, megabytes(config.gpu_memory) << 20
    try:
        refuse_start(loaded, runtime, lambda: on_nodes(engine, ranks, config.gpus_per_node, memory, of_gpu))
    except PipelineError as error:
        requested = f"{config.nodes} node(s) of {a_node} process(es)"
        requested += f" and slurm.memory = {config.memory!r}" * bool(memory)
        requested += f" and slurm.gpu_memory = {config.gpu_memory!r}" * bool(of_gpu)
        raise type(error)(f"nothing was queued; on {requested} the run would end with:\n{error}") from error


def _node_counts(loaded: LoadedRun, runtime: Runtime, config: SlurmConfig) -> tuple[int, ...]:
    """Numbers of nodes for tries in the allocation, most first.

    Raises:
        ConfigError: `min_nodes` allows fewer, and the training can start on none of them.
    """
    from assay.start_preflight import faults_on, on_nodes

    if not config.retries_inside:
        return ()
    a_node, gpus, engine = config.tasks_per_node, config.gpus_per_node, loaded.config.engine
    memory, of_gpu = megabytes(config.memory) << 20, megabytes(config.gpu_memory) << 20
    fewer = range(config.nodes - 1, config.min_nodes - 1, -1) if config.min_nodes else ()
    ranks = (Ranks(0, count * a_node, 0, a_node) for count in fewer)
    faults = faults_on(loaded, runtime, [on_nodes(engine, each, gpus, memory, of_gpu) for each in ranks])
    found = [count for count, fault in zip(fewer, faults, strict=True) if not fault]
    if fewer and not found:
        raise ConfigError(
            f"slurm.min_nodes = {config.min_nodes}: the training cannot start on fewer than {config.nodes} node(s); on "
            f"{fewer[0]}: {faults[0]}"
        )
    return (config.nodes, *found)


def _refuse(submission: Submission, requests: Sequence[JobRequest]) -> None:
    """Write the scripts; fail early if the cluster would refuse them."""
    loaded, config, root = submission.loaded, submission.config, submission.runtime.root
    folders = submission.sources.folders
    make_key(loaded)
    jobs = [order.job for order in requests]
    file = submission.arguments.config.absolute()
    keep_scripts(jobs, file, root, config, container_mounts(loaded, folders, config))
    if submission.arguments.local:
        check_settings(config, root)
        rehearsal.refuse_here(config, root)
    else:
        entries = {order.job.name: len(order.numbers) or max(1, order.job.tasks) for order in requests}
        refuse(jobs, config, root, file, folders_read(loaded, folders), entries)


def _queue(submission: Submission, requests: Sequence[JobRequest], begin: datetime | None = None) -> list[SubmittedJob]:
    root, signer = submission.runtime.root, submission.runtime.hooks.line_signer
    if submission.arguments.local:
        lines = rehearsal.record(requests, root, signer)
    else:
        lines = hand_over(requests, root, submission.config, begin, signer)
    for line in lines:
        count = f" ({len(line.numbers)} of {line.tasks} tasks)" if line.tasks else ""
        say(f"{line.job:<10} {line.name}{count}", jobs=[{"job": line.job, "name": line.name, "tasks": line.tasks}])
    watch = f"assay slurm status {_config_words(submission.arguments)} --watch"
    say(f"next: {watch}", next=watch)
    return lines


def _rehearse(submission: Submission, lines: Sequence[SubmittedJob], requests: Sequence[JobRequest]) -> int:
    """Run the recorded jobs, if this is a rehearsal."""
    if not submission.arguments.local:
        return 0
    sys.stdout.flush()
    return rehearsal.rehearse(
        lines, {order.job.name: order.job for order in requests}, submission.runtime.root, submission.config
    )


def refresh_accounting(root: Path) -> None:
    """Query the cluster's accounting again, for the report.

    Does nothing if the run was not submitted, or if accounting does not answer.
    """
    view = job_states.gather(root)
    if view is not None:
        account(view, _our_joules(root), root)


def _status_lines(
    arguments: Arguments, loaded: LoadedRun, runtime: Runtime, data: tuple[tuple[str, ...], int], most_seconds: float
) -> tuple[View, list[str]]:
    view = job_states.gather(runtime.root, most_seconds) or _no_jobs(runtime)
    energy = account(view, _our_joules(runtime.root), runtime.root)
    trains = _training_folder(loaded, runtime)
    progress = Progress(_config_words(arguments), runtime.root, *data, trains, loaded.config.train.steps)
    first, *rest = describe(view, progress, energy)
    if all(commands.is_local(part.unit) for row in view.rows for part in row.parts):
        rest = [line.replace("assay slurm retry ", "assay slurm retry --local ") for line in rest]
    return view, [first, *frozen.in_words(runtime.root), *rest]


def _training_folder(loaded: LoadedRun, runtime: Runtime) -> Path | None:
    """Folder of the training's record; None before its tokens are made."""
    from assay.pipeline import corpus

    try:
        return training_folder(loaded, corpus(loaded, replace(runtime, make=False)), runtime)
    except PipelineError:
        return None


def _our_joules(root: Path) -> float | None:
    """Joules of the whole root, by Assay's own meters."""
    path = root / ledger.FILE_NAME
    if not path.exists():
        return None
    read = [interval.millijoules for interval in ledger.read_ledger(path)]
    known = [millijoules for millijoules in read if millijoules is not None]
    return sum(known) / 1000 if known else None


def _config_words(arguments: Arguments) -> str:
    """The configuration as the user named it."""
    words = [
        *map(str, (arguments.config, *arguments.more)),
        *(["--root", str(arguments.root)] if arguments.root else []),
    ]
    return shlex.join(words + [word for override in arguments.overrides for word in ("--set", override)])


def _no_jobs(runtime: Runtime) -> View:
    raise MissingInput(f"no job was submitted for {runtime.root}. Submit the run with: {runtime.command}")

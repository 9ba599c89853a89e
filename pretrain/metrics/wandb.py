"""W&B mirror of metrics.jsonl, and W&B runs for finished data and gate.

Line `n` of metrics.jsonl is row `n` of the run's history, over all attempts: so a restart never overwrites a row, and
`wandb_reader.py` can compare the two. The x-axis is "step". Artifacts are references with our digest in their metadata:
no weights, no document and no file of the run is uploaded. Offline nothing leaves the machine.

A thread reads metrics.jsonl behind the run and is the only one that calls wandb, so no step waits for W&B or fails
because of it:

    online    the run continues at the row that the server lacks, so rows that a kill or an outage kept from it are sent
    offline   each attempt's folder begins with the row that no folder and no server has, because `wandb sync` appends
              the rows of a folder to those that the server has
    neither   no answer within `_INIT_SECONDS`, or not all rows accepted within `_FINISH_SECONDS` of the end: the online
              run is given up, rows that the server may lack are written offline, and a warning is logged

W&B's own variables hold where the file sets nothing (WANDB_ENTITY, WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP,
WANDB_TAGS, WANDB_NOTES, WANDB_JOB_TYPE, WANDB_MODE, WANDB_API_KEY, WANDB_BASE_URL), except the folders (WANDB_DIR and
others, since a run's files stay in its own folder) and, outside a sweep, WANDB_RUN_ID: a restart must find its run by
its key.

Price: a millisecond of processor time per line, including the process that wandb starts; 2 ms per checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import netrc
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from governance.errors import MissingInput, Preempted
from governance.files import remove_tree, write_json
from governance.lineage.attest import SHOWN_RUNS
from governance.log import get_logger
from governance.manifest import Input
from pretrain.config.training import TrackingConfig
from pretrain.metrics.events import chart_values, summary_of
from pretrain.metrics.run_identity import METRICS_FILE, MirrorTable, RunIdentity
from pretrain.metrics.tail import Follower
from pretrain.metrics.wandb_reader import read_offline

FOLDER = "wandb"
_SENT_FILE = "sent.json"
_INIT_SECONDS = 60.0
_FINISH_SECONDS = 30.0  # with the next less than the minute that Slurm and the launcher leave to a rank that saves
_OFFLINE_SECONDS = 15.0
_SHORT = 16
_MAX_ROWS = 10_000  # wandb cuts a longer table off
ALERTS = {
    "diverged": ("Training diverged", "ERROR"),
    "hang": ("A rank hangs", "ERROR"),
    "budget": ("Energy budget used up", "WARN"),
}
"""Title and level of the events that alert."""


def mode_of(config: TrackingConfig) -> str:
    """Mode of the file, else of WANDB_MODE, else as logged in."""
    if config.mode != "auto":
        return config.mode
    variable = os.environ.get("WANDB_MODE", "").lower()
    if variable in ("online", "offline", "disabled", "dryrun"):
        return {"dryrun": "offline"}.get(variable, variable)
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):  # where `wandb login` keeps its key
        return "online" if netrc.netrc(os.environ.get("NETRC")).authenticators(host) else "offline"
    return "offline"


def open_wandb(folder: Path, config: TrackingConfig, identity: RunIdentity) -> WandbMirror:
    """Start to mirror the record of `folder`.

    The run's configuration is the recipe, and the digests it is made from. The call returns at once: the mirror's own
    thread connects to the service.

    Raises:
        ImportError: wandb cannot be imported.
    """
    mode = mode_of(config)
    return WandbMirror(_import_wandb(folder / FOLDER, mode), folder, config, identity, mode)


def _import_wandb(place: Path, mode: str) -> Any:
    """Import wandb, which reads these variables at its import."""
    place.mkdir(parents=True, exist_ok=True)
    # The only way to keep its staged files inside the artifact's folder.
    for variable in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        os.environ[variable] = str(place)
    os.environ.setdefault("WANDB_SILENT", "true")
    if mode != "online":  # it looks up the address of its error reports even when it is offline
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb  # not in the mirror's thread: two threads that import at once can see half a module

    return wandb


def _options(config: TrackingConfig, job_type: str, name: str, run_id: str, group: str) -> dict[str, Any]:
    """Arguments of `wandb.init`.

    The fields of the run's file, else W&B's own variables, else defaults of ours.
    """
    given = os.environ.get
    options: dict[str, Any] = {"reinit": "create_new"}
    options |= {field: value for field in ("entity", "notes") if (value := getattr(config, field))}
    options |= {"tags": list(config.tags)} if config.tags else {}
    if config.group or not given("WANDB_RUN_GROUP"):
        options["group"] = config.group or group
    if "project" in config.model_fields_set or not given("WANDB_PROJECT"):
        options["project"] = config.project
    if not given("WANDB_JOB_TYPE"):
        options["job_type"] = job_type
    if not given("WANDB_NAME"):
        options["name"] = name
    if not given("WANDB_SWEEP_ID"):  # the sweep's agent has set WANDB_RUN_ID
        options["id"] = run_id
    return options


def _settings(wandb: Any, config: TrackingConfig) -> Any:
    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=_INIT_SECONDS,
        x_disable_stats=not config.system_metrics,
        x_save_requirements=False,
        disable_git=True,
    )


def group_of(digest: str) -> str:
    """Default group of all runs on token shards of this digest."""
    return f"tokens-{digest[:8]}"


class WandbMirror:
    """One attempt's run at W&B, and the thread that draws it."""

    def __init__(self, wandb: Any, folder: Path, config: TrackingConfig, identity: RunIdentity, mode: str) -> None:
        self._wandb, self._folder, self._config, self._identity, self._mode = wandb, folder, config, identity, mode
        self._sent = folder / FOLDER / _SENT_FILE
        self._exit_code = 0
        self._begin()

    def _begin(self) -> None:
        self._follower, self._given_up = Follower(self._folder / METRICS_FILE), threading.Event()
        given = (self._follower, self._given_up)
        self._thread = threading.Thread(target=self._mirror, args=given, name="wandb", daemon=True)
        self._thread.start()

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Announce a line; it is read from the record."""
        self._follower.more()

    def close(self, exit_code: int) -> None:
        """Wait at most `_FINISH_SECONDS` until all is accepted.

        Then write rows offline that W&B may lack.
        """
        self._exit_code = exit_code
        self._follower.end()
        self._thread.join(_FINISH_SECONDS)
        if self._thread.is_alive():
            if self._mode == "online":
                self._say("W&B has not accepted all rows within %.0f s of the end", _FINISH_SECONDS)
                self._given_up.set()
                _end_service(self._wandb)
                self._mode = "offline"
                self._begin()
                self._follower.end()
            self._thread.join(_OFFLINE_SECONDS)
        if self._thread.is_alive():
            self._given_up.set()
            _end_service(self._wandb)
            get_logger(__name__).warning("W&B does not finish and is abandoned; %s has the whole record", METRICS_FILE)

    def _say(self, message: str, *given: Any) -> None:
        get_logger(__name__).warning(
            f"{message}; rows that it may lack are written offline. Upload them later: wandb sync %s",
            *given,
            self._folder / FOLDER / "wandb",
        )

    def _mirror(self, follower: Follower, given_up: threading.Event) -> None:
        run, mode, rows, whole = None, "", 0, False
        try:
            unwritten = self._first_unwritten()
            run, mode = self._start(given_up)
            first = run.starting_step if mode == "online" else unwritten
            drawing = _Drawing(self._wandb, run, self._identity, first, alerts=self._config.alerts)
            for number, line in follower.lines():
                drawing.draw(number, line)
                rows = number + 1
            drawing.tables()
            whole = True
        except Exception as error:
            if not given_up.is_set():
                get_logger(__name__).warning("W&B failed (%s); the run continues without it", error)
        try:
            if run is not None and not given_up.is_set():
                self._end(run, mode, rows if whole else None)
        except Exception as error:
            if not given_up.is_set():
                get_logger(__name__).warning("W&B cannot be closed (%s); %s has the whole record", error, METRICS_FILE)

    def _first_unwritten(self) -> int:
        """First row that neither a folder nor the server has."""
        sent = json.loads(self._sent.read_text()) if self._sent.exists() else {}
        try:
            rows: list[int] = [row["_step"] + 1 for row in read_offline(self._folder / FOLDER).history]
        except MissingInput:
            rows = []
        return max([0, int(sent.get("rows", 0)), *rows])

    def _start(self, given_up: threading.Event) -> tuple[Any, str]:
        """A run, and its mode.

        `_mode` may belong to another thread by the time that this one ends.
        """
        if self._mode == "online":
            try:
                run = self._init("online")
                write_json(self._sent, {"rows": run.starting_step})
                return run, "online"
            except Exception as error:
                if given_up.is_set():  # another thread writes by now
                    raise
                self._say("W&B does not answer (%s)", (str(error) or repr(error)).splitlines()[0])
                _tear_down(self._wandb)  # its process still holds the run's name
                if given_up.is_set():
                    raise
                self._mode = "offline"
        return self._init("offline"), "offline"

    def _init(self, mode: str) -> Any:
        identity, place = self._identity, self._folder / FOLDER
        run = self._wandb.init(
            **_options(
                self._config,
                self._config.job_type,
                self._config.name or f"train-{identity.key[:8]}",
                identity.key[:_SHORT],
                group_of(identity.inputs[0].digest if identity.inputs else identity.key),
            ),
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=place,
            config={
                **identity.recipe.model_dump(mode="json"),
                "key": identity.key,
                "inputs": {item.stage: {"digest": item.digest, "path": item.path} for item in identity.inputs},
            },
            settings=_settings(self._wandb, self._config),
        )
        _log_without_waiting(run)
        return run

    def _end(self, run: Any, mode: str, rows: int | None) -> None:
        """Put the journal's head into the summary, and end the run.

        `rows` are those of the record, if the run has all of them.
        """
        with contextlib.suppress(Exception):  # a broken run still has to be ended
            run.summary["journal_head"] = self._identity.head()
            if self._exit_code == Preempted.exit_code:  # W&B shows it as preempted, not as failed
                run.mark_preempting()
        run.finish(exit_code=self._exit_code)
        if mode == "offline":
            _tear_down(self._wandb)  # `finish` answers before its process has written all; this waits for that process
        elif rows is not None:
            write_json(self._sent, {"rows": rows})
            for folder in (self._folder / FOLDER).rglob(f"offline-run-*-{self._identity.key[:_SHORT]}"):
                remove_tree(folder)  # the server has its rows; an upload would append them again


class _Drawing:
    """Contents of a W&B run: rows, artifacts, tables."""

    def __init__(self, wandb: Any, run: Any, identity: RunIdentity, first: int, *, alerts: bool) -> None:
        self._wandb, self._run, self._identity, self._first = wandb, run, identity, first
        self._charts: set[str] = set()
        self._alerts = alerts
        self._validated: dict[int, float] = {}
        self._saved: dict[int, float] = {}
        run.define_metric("step", hidden=True)
        for item in identity.inputs:
            self._use(item)
        self.tables()

    def draw(self, number: int, line: Mapping[str, Any]) -> None:
        """Log a line as row `number`, unless an earlier attempt did."""
        new = number >= self._first
        if new:
            self._row(number, line)
        step, event = line["step"], line["event"]
        if event == "start":
            # Measurements and checkpoints after this step were rolled back.
            self._validated = {at: loss for at, loss in self._validated.items() if at <= step}
            self._saved = {at: loss for at, loss in self._saved.items() if at <= step}
            texts = {name: value for name, value in line.items() if isinstance(value, str) and name != "event"}
            if new:
                self._run.config.update({"start": texts}, allow_val_change=True)
        elif event == "validation" and line["loss"] is not None and math.isfinite(line["loss"]):
            self._validated[step] = line["loss"]
        elif event == "checkpoint":
            self._checkpoint(line, new)
        if new and self._alerts and event in ALERTS:
            title, level = ALERTS[event]
            facts = ", ".join(f"{name} {value}" for name, value in line.items() if isinstance(value, (int, float, str)))
            self._run.alert(title=title, text=facts, level=level)

    def _row(self, number: int, line: Mapping[str, Any]) -> None:
        values = chart_values(line)
        for chart in values.keys() - self._charts:
            # W&B takes a star (in a pattern that names a group of parameters) for a wildcard, allowed at the end alone.
            name = f"{chart.partition('/')[0]}/*" if "*" in chart else chart
            self._run.define_metric(name, step_metric="step", step_sync=False, summary=summary_of(chart))
            self._charts.add(chart)
        place = {"step": line["step"], "attempt": line["attempt"]}
        self._run.log({**place, **values}, step=number, commit=True)

    def _checkpoint(self, line: Mapping[str, Any], new: bool) -> None:
        """A version of the run's model.

        Its aliases are "latest", "step-N", and "best" while no earlier one validated as well.
        """
        step, loss = line["step"], self._validated.get(line["step"])
        best = loss is not None and all(loss < other for at, other in self._saved.items() if at != step)
        if loss is not None:
            self._saved[step] = loss
        if new:
            aliases = ["latest", f"step-{step}", *(["best"] if best else [])]
            metadata = {"step": step} | ({} if loss is None else {"validation_loss": loss})
            self._run.log_artifact(
                self._reference(f"checkpoint-{self._identity.key[:_SHORT]}", "model", line, metadata), aliases=aliases
            )

    def _use(self, item: Input) -> None:
        """Input artifacts under names of their own, shared between runs.

        `run.use_artifact` raises offline; an artifact that is logged to be used is used once it arrives, then as now.
        """
        path = Path(item.path)
        name = re.sub(r"[^\w.-]", "-", f"{item.stage}-{path.parent.name if path.stem == 'manifest' else path.stem}")
        artifact = self._reference(name, "input", {"path": item.path, "digest": item.digest}, {})
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _reference(self, name: str, kind: str, to: Mapping[str, Any], more: Mapping[str, Any]) -> Any:
        metadata = {"digest": to["digest"], "path": to["path"], **more}
        artifact = self._wandb.Artifact(name, type=kind, metadata=metadata)
        artifact.add_reference(f"assay://{to['path']}#{to['digest']}", name="manifest.json", checksum=False)
        return artifact

    def tables(self) -> None:
        """Current tables and summary figures (`RunIdentity.tables`)."""
        try:
            shown = self._identity.tables()
        except Exception as error:
            get_logger(__name__).warning("W&B gets no tables (%s)", error)
            return
        _summarize(self._wandb, self._run, shown)


def _summarize(wandb: Any, run: Any, values: Mapping[str, MirrorTable | float | str | None]) -> None:
    """Put tables and figures into the run's summary."""
    for name, value in values.items():
        if isinstance(value, MirrorTable):
            if len(value.rows) > _MAX_ROWS:
                get_logger(__name__).warning("W&B gets the first %d of %d rows of %s", _MAX_ROWS, len(value.rows), name)
            rows = [list(row) for row in value.rows[:_MAX_ROWS]]
            run.summary[name] = wandb.Table(columns=list(value.columns), data=rows, allow_mixed_types=True)
        else:
            run.summary[name] = value


@dataclass(frozen=True)
class FinishedRun:
    """A W&B run about finished work.

    The data, or the gate's decision.
    """

    job_type: str
    name: str
    identity: str
    """Hexadecimal digest of what it shows; the same is shown once."""
    config: dict[str, Any]
    summary: dict[str, MirrorTable | float | str | None]
    alert: str = ""
    """Text of an alert that goes with it; "": none."""


def show_finished(place: Path, config: TrackingConfig, group: str, runs: Sequence[FinishedRun]) -> bool:
    """Show runs at W&B, or write them offline below `place`, each once.

    Returns whether new runs were shown and W&B's process has ended, so that the files no longer change.

    They are shown only where W&B was requested: by the mode, by WANDB_MODE, or by a login. A process of its own does
    it, because wandb reads its folders at import, and a training of this process has other ones. Its faults are
    warnings. The price is about 4 s, most of them starting that process.
    """
    mode, record = mode_of(config), place / SHOWN_RUNS
    requested = mode == "online" or (mode == "offline" and (config.mode != "auto" or "WANDB_MODE" in os.environ))
    if not requested:
        return False
    try:
        shown = [str(name) for name in json.loads(record.read_bytes())] if record.exists() else []
    except (OSError, TypeError, ValueError) as error:
        get_logger(__name__).warning("W&B shows nothing new: %s cannot be read (%s); remove it", record, error)
        return False
    new = [run for run in runs if run.identity not in shown]
    if not new:
        return False
    apart = multiprocessing.get_context("spawn").Process(target=_show, args=(place, config, group, new))
    apart.start()
    apart.join(_INIT_SECONDS + _FINISH_SECONDS)
    if apart.exitcode == 0:
        write_json(record, [*shown, *(run.identity for run in new)])
        return True
    apart.kill()
    names = ", ".join(run.name for run in new)
    get_logger(__name__).warning("W&B does not show %s; the reports and metrics.jsonl are the record", names)
    return False


def _show(place: Path, config: TrackingConfig, group: str, runs: Sequence[FinishedRun]) -> None:
    mode = mode_of(config)
    wandb = _import_wandb(place, mode)
    for shown in runs:
        options = _options(config, shown.job_type, shown.name, shown.identity[:_SHORT], group)
        options |= {"id": shown.identity[:_SHORT], "name": shown.name, "job_type": shown.job_type}
        resume = "allow" if mode == "online" else None
        settings = _settings(wandb, config)
        run = wandb.init(**options, resume=resume, mode=mode, dir=place, config=shown.config, settings=settings)
        _summarize(wandb, run, shown.summary)
        if shown.alert and config.alerts:
            run.alert(title="Gate closed", text=shown.alert, level="ERROR")
        run.finish()
    _tear_down(wandb)


def _log_without_waiting(run: Any) -> None:
    """Make the run hand over artifacts without waiting, as offline.

    Online, wandb 0.31 asks the server about each one first, and while that does not answer it waits for 20 s and
    raises. Its process needs no answer: it sends the artifact when it can.
    """

    def log(given: Any, name: Any = None, type: Any = None, aliases: Any = None, **how: Any) -> Any:
        artifact, aliases = run._prepare_artifact(given, name, type, aliases)
        tags, how["finalize"] = how.pop("tags", None), how.get("finalize", True)
        how.pop("distributed_id", None)  # for artifacts that several runs write, which ours are not
        run._interface.publish_artifact(run, artifact, aliases, tags, **{"use_after_commit": False, **how})
        return artifact

    run._log_artifact = log


def _end_service(wandb: Any) -> None:
    """End wandb's own process, and everything that waits for it.

    `finish_timeout` does not: with a server that is gone, `finish` of wandb 0.31 waits on, and so would the hook that
    ends that process when ours exits.
    """
    with contextlib.suppress(Exception):
        from wandb.sdk import wandb_setup

        connection: Any = wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()
    _tear_down(wandb)


def _tear_down(wandb: Any) -> None:
    """Let wandb's process end, and forget it: the next start has another.

    It would end ours where that one failed.
    """
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()

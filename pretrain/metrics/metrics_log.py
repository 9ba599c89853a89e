"""Metrics log (`metrics.jsonl`); W&B, TensorBoard, MLflow and Prometheus mirror it.

A line of metrics.jsonl, one per step (of rank 0; a restart appends, and `attempt` is the start that computed a step):

    {"attempt": 1, "event": "step", "grad_norm": 1.02, "loss": 4.71, "lr": 0.001, "mfu": 0.41, "seconds": 0.8,
     "step": 100, "tokens": 819200, "tokens_per_second": 10240.0, ...}

docs/monitoring.md describes every event and field. An unknown value is null; a number that is not finite is text. A run
with a journal signs each line (`signing/signed_lines.py`). The mirrors get the same lines without signatures under the
same number (`events.py` names their charts) and may fail: the run continues. Steps that a restart computes again are
recorded twice, and its event "start" has their number.

Price: 50 microseconds of processor time per line, 150 with its signature. Lines are not synced, which would cost
milliseconds each: a killed process loses none, because the kernel has them. A node that loses its power may lose the
last seconds, whose steps a resumed run computes again anyway, unless a checkpoint was saved since.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from governance.errors import ConfigError
from governance.files import append_line, read_lines, steps_among
from governance.hooks import LineSigner, SignLine, sign_nothing
from governance.log import get_logger
from pretrain.config.training import TrackingConfig
from pretrain.metrics.run_identity import METRICS_FILE, RunIdentity

Record = Callable[..., None]
"""`record(event, step, **values)`."""


class Mirror(Protocol):
    """Service that shows the record."""

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Draw line `number` (from 0, over all attempts) of metrics.jsonl."""

    def close(self, exit_code: int) -> None:
        """Write buffered lines.

        `exit_code` is that of the training that ends.
        """


@contextlib.contextmanager
def open_record(
    folder: Path,
    config: TrackingConfig,
    identity: RunIdentity,
    allowed: Callable[[], None] = lambda: None,
    signer: LineSigner = sign_nothing,
    *,
    writes: bool,
) -> Iterator[tuple[Record, int]]:
    """Yield `record` and the number of this attempt.

    On ranks that do not write, `record` does nothing and the number is 0: to read the record takes 2.5 kB of memory and
    30 microseconds a line, too much for every rank of a node. `allowed` is called before each line, and may refuse it
    by raising; `signer` before the first.

    Raises:
        ConfigError: TensorBoard or MLflow is requested and not installed.
    """
    mirrors_of = list(_mirrors(folder, config, identity))
    if not writes:
        yield lambda event, step, **values: None, 0
        return
    path = folder / METRICS_FILE
    number, attempt, reached = _earlier(path)
    one_at_a_time = threading.Lock()
    sign: SignLine | None = None
    mirrors: list[_GuardedMirror] = []
    exit_code = 0
    try:
        for name, start in mirrors_of:
            mirrors.append(_GuardedMirror(name, start))

        def record(event: str, step: int, **values: Any) -> None:
            nonlocal number, sign
            allowed()
            if event == "start":
                values["rolled_back"] = max(reached - step, 0)
                if reached > step:
                    log = get_logger(__name__)
                    log.info("train: steps %d to %d of an earlier attempt are computed again", step + 1, reached)
            line = {"event": event, "step": step, "attempt": attempt, **values}
            with one_at_a_time:  # the saving thread records checkpoints
                sign = sign or signer(path, uuid.uuid4().hex)
                append_line(path, json.dumps(sign(_finite(line)), sort_keys=True))
                for mirror in mirrors:
                    mirror.show(number, line)
                number += 1

        yield record, attempt
    except BaseException as error:
        exit_code = _exit_code_of(error)
        raise
    finally:
        # At the same time: Slurm and the launcher leave a rank one minute for all of them.
        closing = [threading.Thread(target=mirror.close, args=(exit_code,), daemon=True) for mirror in mirrors]
        for one in closing:
            one.start()
        for one in closing:
            one.join()


def _earlier(path: Path) -> tuple[int, int, int]:
    """Next line, next attempt, and the step that the record reached.

    An attempt that starts goes back to its checkpoint's step, and its event "start" states how far; one that ends
    before its start changes nothing.
    """
    lines = read_lines(path)
    earlier = steps_among(lines)
    attempt = 1 + max((line.get("attempt", 0) for line in earlier), default=0)
    reached = [line["step"] for line in earlier if line.get("event") in ("start", "step")]
    return len(lines), attempt, reached[-1] if reached else 0


def _exit_code_of(error: BaseException) -> int:
    """Exit status of a process that ends by this error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    code = getattr(error, "exit_code", 1)  # of a `PipelineError`, and of a stop before the first step
    return code if isinstance(code, int) else 1


def require_mirrors(config: TrackingConfig) -> None:
    """Raise unless the packages of the requested mirrors are installed.

    Raises:
        ConfigError: with the command that installs the one that is missing.
    """
    for name, setting in (("tensorboard", config.tensorboard), ("mlflow", config.mlflow)):
        if setting and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"tracking.{name} is set, but the package {name} is not installed. Install it with: "
                f"pip install 'assay-pretrain[{name}]', or remove the setting"
            )


def _mirrors(folder: Path, config: TrackingConfig, identity: RunIdentity) -> Iterator[tuple[str, Callable[[], Mirror]]]:
    """Names of the requested mirrors, and how each is opened.

    Raises:
        ConfigError: a package that one needs is not installed.
    """
    from pretrain.metrics.mirrors import FOLDER, MlflowMirror, TensorboardMirror, open_prometheus
    from pretrain.metrics.wandb import mode_of, open_wandb

    require_mirrors(config)
    if mode_of(config) != "disabled":
        yield "W&B", lambda: open_wandb(folder, config, identity)
    if config.tensorboard:
        yield "TensorBoard", lambda: TensorboardMirror(folder / FOLDER)
    if config.mlflow:
        yield "MLflow", lambda: MlflowMirror(folder, config, identity)
    if config.prometheus:
        yield "Prometheus", lambda: open_prometheus(Path(config.prometheus), identity.key[:8])


def _finite(value: Any) -> Any:
    """The value in a form that JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return value


class _GuardedMirror:
    """A mirror that never raises: no foreign service stops a run.

    After a fault it shows nothing.
    """

    def __init__(self, name: str, start: Callable[[], Mirror]) -> None:
        self._name, self._log = name, get_logger(__name__)
        self._mirror: Mirror | None = None
        try:
            self._mirror = start()
        except Exception as error:
            self._log.warning("%s does not start (%s); %s has the whole record", name, error, METRICS_FILE)
        self._working = self._mirror is not None

    def show(self, number: int, line: Mapping[str, Any]) -> None:
        """Draw a line."""
        if self._mirror is None or not self._working:
            return
        try:
            self._mirror.show(number, line)
        except Exception as error:
            self._working = False
            self._log.warning("%s failed (%s); the run continues without it", self._name, error)

    def close(self, exit_code: int) -> None:
        """Write buffered lines."""
        if self._mirror is None:
            return
        try:
            self._mirror.close(exit_code)
        except Exception as error:
            words = "%s cannot be closed (%s); %s has the whole record"
            self._log.warning(words, self._name, error, METRICS_FILE)

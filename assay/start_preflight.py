"""Preflight: fail before data preparation if training could not start.

`assay run` checks before the first source is read, `assay slurm submit` before the first job is queued, and `assay
train --dry-run` reports what it found: a site whose rules do not bind the run (77), settings that do not work together
on these ranks (78), a requested GPU that is missing (78), a model that does not fit (1), each with the message of
the start itself. It also reports patterns of `[[optim.groups]]` that match no parameter, and packages that are not
installed (78). The first two also check the checkpoint to continue from and the files of tasks (66), and import own
code (66, 78). A finished training is not checked. The vocabulary is that of the token shards; where there are none
yet, the size that `[data.tokenizer]` requests, which may exceed what its sample gives.

Nothing here imports torch. Where a GPU may be, a separate process queries torch: a CUDA context would stay in this
one for as long as the corpus takes. Another one compares the patterns, and the names and shapes of the tensors of
`train.initial_weights`, with a model without storage. Price: that process' import of torch, where there is a driver, a
pattern or a folder of weights; where token shards may be, the look-up of the corpus, which reads sources whose digests
are not cached in `fetch/digests.json`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from assay.config import LoadedRun
from assay.inspect.formats import InputFiles, first_records
from assay.training_recipe import pinned, training_folder
from assay.weights_origin import weights_origin
from data_pipeline.prepare import prepare
from data_pipeline.readers.local import remaining_files
from data_pipeline.readers.sources import PathSource, Source
from data_pipeline.tokens.tokenizer import take_over
from governance.errors import ConfigError, MissingInput, PipelineError
from governance.gate.verdict import binding_sites
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest
from governance.stage import Runtime
from pretrain.callbacks import open_callbacks
from pretrain.config.training import EngineConfig, TrackingConfig, TrainRecipe
from pretrain.distillation.teacher import online_teacher
from pretrain.distributed.process_group import Ranks, device_of, kind_of
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.initial_weights.start import open_weights
from pretrain.metrics.metrics_log import require_mirrors
from pretrain.optim.optimizers import make_optimizer, parameter_groups
from pretrain.preflight.compatibility import check_start, faults_of
from pretrain.preflight.hardware import Hardware, cpu_hardware, hardware_of
from pretrain.preflight.memory_room import refuse_what_cannot_fit

_AMD = Path("/dev/kfd")
_MAX_FILES_SEEN = 16
"""Files of a source whose first records are looked at for licences."""
LARGEST_GPU = 432_000_000_000
"""Bytes of the largest memory of a GPU that is announced (AMD Instinct MI430X): what it cannot hold, none can."""


def require_site_rules(run: LoadedRun) -> None:
    """Require that a run meets the policy of its site.

    Raises:
        GateClosed: its policy or its keys are not the site's.
    """
    binding_sites(run.policy, run.keyring)


def warn_of_licences(run: LoadedRun) -> None:
    """Warn of licences that the policy does not allow.

    The warning comes before anything is made. Where documents carry licences of their own (`licence_field`), those of
    the first records of some files are looked at; the audit judges all.
    """
    for source in run.config.data.sources:
        for licence in sorted(_licences_seen(source, run.folder) - {*run.config.data.clean.refuse_licences}):
            if closing := run.policy.closed_by_licence(source.name, licence):
                get_logger(__name__).warning(
                    "source %s: the policy does not allow %s %s, so %s will fail if a document of it is kept. "
                    "%s the source, or refuse the licence (data.clean.refuse_licences), or have legal allow it (%s)",
                    source.name, "its licence" if licence == source.licence else "the licence of its documents",
                    licence, ", ".join(closing),
                    "State the licence that its documents have, remove" if licence == "NOASSERTION" else "Remove",
                    run.config.governance.policy,
                )  # fmt: skip


def warn_of_expectations(run: LoadedRun, runtime: Runtime) -> None:
    """Warn of gates whose expectation Great Expectations does not have.

    The audit, perhaps hours later, would find the gate in error. Own classes are tried there, in their time limit. If
    the corpus is made, the audit is made or comes next and reports it, so Great Expectations is not loaded here.
    """
    named = [gate for gate in run.policy.gates() if gate.expectation == "gx" and ":" not in gate.gx]
    if not named or _look_up(run, runtime) is not None:
        return
    from governance.checks.expectations import build_expectation

    for gate in named:
        try:
            build_expectation(gate)
        except Exception as error:
            get_logger(__name__).warning(
                "gate %s: %s. It will be in error, and nothing will be trained: correct %s",
                gate.id, " ".join(str(error).split()), run.config.governance.policy,
            )  # fmt: skip


def _licences_seen(source: Source, folder: Path) -> set[str]:
    """Licences of the first records of some files.

    Without a licence field, or where the files are not local: the source's own licence. Records whose licence is not
    text are left out, because ingestion will quarantine them.
    """
    field = source.fields.licence
    if not field or not isinstance(source, PathSource):
        return {source.licence}
    files = list(remaining_files(source, folder))
    some = files[:: max(1, -(-len(files) // _MAX_FILES_SEEN))]
    records = [record for file in some for record in first_records(InputFiles(source.type, "", (file,), 0))]
    stated = [record.get(field) for record in records] or [None]
    return {licence or source.licence for licence in stated if licence is None or isinstance(licence, str)}


def refuse_start(run: LoadedRun, runtime: Runtime, find_hardware: Callable[[], Hardware]) -> None:
    """Raise if training would be refused on this hardware.

    `find_hardware` is called only if training is not finished.

    Raises:
        GateClosed: the run is not under the rules of its site, or the origin of its parent is refused.
        ConfigError: the settings do not work there, or the requested GPU is missing.
        MissingInput: the checkpoint to continue from is missing, or a file of its tasks.
        CheckpointError: the parent checkpoint is not a checkpoint, or the initial weights are not those of the model.
        PipelineError: the model does not fit.
    """
    require_site_rules(run)
    artifacts = _look_up(run, runtime)
    folder = None
    if artifacts is not None:
        with contextlib.suppress(MissingInput):  # a file of its tasks
            folder = training_folder(run, artifacts, runtime)
    if folder is not None and (folder / FILE_NAME).exists():
        return
    weights = open_weights(pinned(run), runtime)
    weights_origin(run, runtime, folder)
    open_callbacks(run.config.train.callbacks, run.folder)
    hardware, recipe, engine = find_hardware(), run.config.recipe, run.config.engine
    check_start(recipe, run.settings, hardware)
    refuse_missing_packages(run.config.tracking)
    vocabulary, _ = _size(run, artifacts)
    refuse_groups(recipe, vocabulary, run.folder)
    if weights is not None:
        _apart(weights.check, vocabulary)
    refuse_passed_keys(recipe, engine, hardware.world_size or 1)
    refuse_what_cannot_fit(recipe, engine, vocabulary, hardware, online_teacher(pinned(run), runtime))


def faults_on(run: LoadedRun, runtime: Runtime, machines: Sequence[Hardware]) -> list[str]:
    """For each machine the reason why training could not start there.

    "" where it could. `refuse_start` has checked everything that does not depend on them.
    """
    if not machines:
        return []

    recipe, engine = run.config.recipe, run.config.engine
    vocabulary, _ = _size(run, _look_up(run, runtime))
    teacher, found = online_teacher(pinned(run), runtime), []
    for hardware in machines:
        faults = faults_of(recipe, run.settings, hardware)
        try:
            if not faults:
                refuse_passed_keys(recipe, engine, hardware.world_size or 1)
                refuse_what_cannot_fit(recipe, engine, vocabulary, hardware, teacher)
        except PipelineError as error:
            faults = [str(error)]
        found.append("\n".join(faults))
    return found


def refuse_missing_packages(tracking: TrackingConfig) -> None:
    """Raise if a requested mirror's package is not installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    require_mirrors(tracking)
    if tracking.mode == "online" and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            "tracking.mode = 'online', but the package wandb is not installed. Install it with: pip install wandb, or "
            "set tracking.mode = 'disabled'"
        )


def refuse_groups(recipe: TrainRecipe, vocabulary: int, folder: Path) -> None:
    """Raise if a parameter group matches nothing or decays too fast.

    A custom optimizer, searched for in `folder` first, is built and tried on small parameters.

    Raises:
        ConfigError: names the nearest parameters, or what a custom optimizer does that a checkpoint cannot restore.
    """
    if recipe.optim.groups or recipe.optim.function:
        _apart(_group, recipe, vocabulary, folder)


def _group(recipe: TrainRecipe, vocabulary: int, folder: Path) -> None:
    import torch

    from pretrain.encoder_decoder.model_of_pairs import make_model

    with torch.device("meta"):
        model = make_model(recipe.model, vocabulary)
    groups = parameter_groups(model.named_parameters(), recipe.optim, lambda parameter: parameter.shape)
    if recipe.optim.function:
        make_optimizer(groups, recipe.optim, folder)


def refuse_passed_keys(recipe: TrainRecipe, engine: EngineConfig, world_size: int) -> None:
    """Raise if DeepSpeed does not know a passed key.

    Imports DeepSpeed in a separate process, and only where keys are passed.

    Raises:
        ConfigError: names the keys.
    """
    if engine.deepspeed:
        _apart(_pass, deepspeed_config(recipe, engine, world_size))


def _pass(config: dict[str, Any]) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"  # no context on a GPU for a look at names
    from pretrain.engine.engine import refuse_unknown_keys

    refuse_unknown_keys(config)


def vocabulary_of(run: LoadedRun, runtime: Runtime) -> tuple[int, str]:
    """Ids of the tokens, and the source of each."""
    return corpus_figures(run, runtime)[:2]


class CorpusFigures(NamedTuple):
    """Figures of the corpus, or of its settings before it is made."""

    vocabulary: int
    """Ids of the tokens."""
    source: str
    """Source of that number, in words."""
    document_tokens: float | None
    """Mean over training documents; None: there are no shards."""
    digest: str
    """Digest of the token shards; "" without them."""


def corpus_figures(run: LoadedRun, runtime: Runtime) -> CorpusFigures:
    """Figures of the corpus that a training would read."""
    artifacts = _look_up(run, runtime)
    stats = artifacts["encode"].stats if artifacts else {}
    documents = stats.get("train_documents")
    mean = stats["train_tokens"] / documents if documents else None
    return CorpusFigures(*_size(run, artifacts), mean, artifacts["encode"].digest if artifacts else "")


def _size(run: LoadedRun, artifacts: dict[str, Manifest] | None) -> tuple[int, str]:
    if artifacts is not None:
        return int(artifacts["tokenizer"].stats["vocabulary_size"]), "ids, as the token shards have them"
    config, source = run.config.data.tokenizer, "ids, as [data.tokenizer] requests: there are no token shards yet"
    size = len(take_over(run.folder / config.path, config)[1].pieces) if config.path else config.vocabulary_size
    return size, source


def _look_up(run: LoadedRun, runtime: Runtime) -> dict[str, Manifest] | None:
    """The corpus, where it is made.

    Sources are read only where token shards of this root could be of them.
    """
    if not (runtime.root / "encode").is_dir():
        return None
    try:
        return prepare(run.config.data, run.folder, replace(runtime, make=False))
    except MissingInput:
        return None


def local_hardware(engine: EngineConfig, ranks: Ranks) -> Hardware:
    """Hardware of this node's last rank.

    Raises:
        ConfigError: a GPU is requested and there is none, or there are fewer than ranks.
    """
    if engine.device == "cpu" or not may_have_gpu():
        kind_of(0, ranks, engine.device)
        return cpu_hardware(ranks)
    hardware: Hardware = _apart(_ask_torch, engine.device, _last(ranks))
    return replace(hardware, ranks=ranks)


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that imports torch, in a separate process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        return apart.submit(function, *arguments).result()


def may_have_gpu() -> bool:
    """Return whether torch might find a GPU here.

    Looks for a driver, without which torch never finds one.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return _AMD.exists()
    return True


def _ask_torch(wanted: str, ranks: Ranks) -> Hardware:
    return hardware_of(ranks, device_of(ranks, wanted))


def _last(ranks: Ranks) -> Ranks:
    return replace(ranks, local_rank=ranks.local_world_size - 1)


def on_nodes(engine: EngineConfig, ranks: Ranks, gpus: int, memory: int, gpu_memory: int = 0) -> Hardware:
    """Hardware of a rank on cluster nodes, as far as known.

    Args:
        engine: its settings.
        ranks: all of them.
        gpus: requested on each node.
        memory: bytes requested on each node; 0: the cluster's default.
        gpu_memory: bytes of each of its GPUs; 0: unknown, and no GPU holds more than `LARGEST_GPU`.

    Raises:
        ConfigError: a node would have fewer GPUs than ranks.
    """
    share = memory // ranks.local_world_size or None
    if engine.device == "cuda" and not gpus:
        get_logger(__name__).warning(
            "engine.device = 'cuda' with slurm.gpus_per_node = 0: a job that requests no GPU gets none, unless its "
            "nodes show all of theirs to every job. Set slurm.gpus_per_node."
        )
        return Hardware(ranks, "cuda", device_bytes=gpu_memory or LARGEST_GPU, host_bytes=share)
    kind = kind_of(gpus, _last(ranks), engine.device)
    if kind == "cpu":
        return Hardware(ranks, "cpu", device_bytes=share, host_bytes=share)
    return Hardware(ranks, "cuda", gpus=gpus, device_bytes=gpu_memory or LARGEST_GPU, host_bytes=share)

"""The run's TOML file: all sections, from raw corpus to report.

    [[data.sources]] [data.*] [governance] [audit] [model] [optim] [train] [checkpoint] [engine] [tracking] [energy]
    [evaluation] [profile] [model_audit] [memorisation] [claims] [scaling] [mixture]
    [slurm]

A run may have several files (`run_file.py`). Every section belongs to the package that uses it; this module only
combines them. Derived values (accumulation steps, DeepSpeed's whole configuration) are functions of these, never
settings of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from assay.run_file import Needs, RunFile, fill_defaults, is_shipped, read_run_file
from data_pipeline.config import DataConfig
from governance.checks.audit import AuditConfig
from governance.config import Section, validate
from governance.energy.meters import EnergyConfig
from governance.errors import ConfigError
from governance.gate.policy import Policy, load_policy
from governance.gate.verdict import GateContext, GovernanceConfig, Keyring
from governance.lineage.attest import open_journal
from governance.log import get_logger
from governance.manifest import FILE_NAME
from governance.signing.journal import Journal
from pretrain.config.model import ModelConfig
from pretrain.config.optim import OptimConfig
from pretrain.config.training import (
    CheckpointConfig,
    EngineConfig,
    EvaluationConfig,
    ProfileConfig,
    Settings,
    TrackingConfig,
    TrainConfig,
    TrainRecipe,
)
from pretrain.distributed.process_group import read_ranks, slurm_attempt
from pretrain.evaluation.model_bias import ModelAuditConfig
from pretrain.experiments.claims_config import ClaimsConfig
from pretrain.experiments.mixtures.mixture_runs import MixtureExperimentConfig
from pretrain.experiments.scaling.ladder import ScalingConfig
from pretrain.inference.memorisation import MemorisationConfig
from pretrain.initial_weights.hub_weights import SCHEME
from pretrain.preflight.compatibility import check_together
from slurm.config import SlurmConfig, with_site


class RunConfig(Section):
    """The whole file."""

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig
    governance: GovernanceConfig = GovernanceConfig()
    audit: AuditConfig = AuditConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()
    energy: EnergyConfig = EnergyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()
    model_audit: ModelAuditConfig = ModelAuditConfig()
    memorisation: MemorisationConfig = MemorisationConfig()
    claims: ClaimsConfig = ClaimsConfig()
    scaling: ScalingConfig = ScalingConfig()
    mixture: MixtureExperimentConfig = MixtureExperimentConfig()
    slurm: SlurmConfig = SlurmConfig()

    @property
    def recipe(self) -> TrainRecipe:
        """The recipe: settings that decide the trained weights."""
        return TrainRecipe(model=self.model, optim=self.optim, train=self.train, evaluation=self.evaluation)


@dataclass(frozen=True)
class LoadedRun:
    """A configuration with its file and policy."""

    config: RunConfig
    path: Path
    """The first of its files that is not shipped."""
    policy: Policy
    source: RunFile = field(default_factory=RunFile)
    """The merged values with their origins."""
    journals: dict[Path, Journal] = field(default_factory=dict, repr=False, compare=False)
    """Journals by root; a process verifies each line once."""

    @property
    def folder(self) -> Path:
        """Folder from which relative paths start."""
        return self.path.parent

    @property
    def keyring(self) -> Keyring:
        """The run's keys."""
        return Keyring(self.config.governance, self.folder)

    def journal(self, root: Path) -> Journal:
        """The one journal of a root, with the run's keys."""
        if root not in self.journals:
            self.journals[root] = open_journal(self.keyring, root)
        return self.journals[root]

    def gate(self, root: Path) -> GateContext:
        """The gate of this run's corpus, in a root."""
        return GateContext(self.keyring, root, self.journal(root))

    @property
    def settings(self) -> Settings:
        """Settings that change no result, with the site's defaults under Slurm."""
        config, in_job = self.config, bool(slurm_attempt()[0])
        section = with_site(config.slurm, self.folder) if in_job else config.slurm
        return Settings(
            config.checkpoint, config.engine, config.tracking, section.warning_seconds, config.profile, self.folder
        )


def _refuse_unknown_sources(config: RunConfig, path: Path) -> None:
    known = {source.name for source in config.data.sources}
    for number, phase in enumerate(config.train.mixture, 1):
        if unknown := sorted(name for name in phase.weights if name not in known):
            raise ConfigError(
                f"{path}: train.mixture[entry {number}].weights names {', '.join(map(repr, unknown))}; the sources of "
                f"[[data.sources]] are {', '.join(sorted(known))}. Correct the name, or add the source."
            )


def _refuse_missing_sentinels(config: RunConfig, path: Path) -> None:
    """Raise if the tokenizer to be trained will lack sentinels.

    One that is given may have its own, which the start of the training counts.
    """
    corruption, tokenizer = config.train.span_corruption, config.data.tokenizer
    if corruption is None or tokenizer.path:
        return
    needed = corruption.sizes(config.train.sequence_length)[1]
    if tokenizer.sentinels < needed:
        raise ConfigError(
            f"{path}: train.span_corruption leaves up to {needed} spans out of a text of train.sequence_length = "
            f"{config.train.sequence_length} tokens, and data.tokenizer.sentinels is {tokenizer.sentinels}. Set it to "
            f"{needed} or more."
        )


def _with_weights(config: RunConfig, folder: Path, origins: dict[str, str]) -> RunConfig:
    """Take `continue_from` as `initial_weights` where it names Hugging Face weights.

    Such weights carry no training state that could be continued.
    """
    named = config.train.continue_from
    place = folder / os.path.expanduser(named)
    has_weights = (place / "config.json").exists() and not (place / FILE_NAME).exists()
    if not named or not (named.startswith(SCHEME) or has_weights):
        return config
    if config.train.initial_weights:
        raise ConfigError(f"train.continue_from = {named!r} and train.initial_weights name weights: remove one of them")
    origins["train.initial_weights"] = "train.continue_from, which names Hugging Face weights"
    train = config.train.model_copy(update={"initial_weights": named, "continue_from": ""})
    return config.model_copy(update={"train": train})


def load_run(path: Path, overrides: Sequence[str], more: Sequence[Path] = (), *, needs: Needs = "all") -> LoadedRun:
    """Read a run's file, those merged over it, and its policy.

    `more` are files merged over `path`, from left to right. `needs` is what the command uses of it. The first file that
    is not shipped is the run's own: its folder has the policy, and relative paths start there.

    Raises:
        ConfigError: a file is wrong, or its sections do not fit together.
    """
    files = (path, *more)
    merged = read_run_file(files, overrides)
    path = next((file for file in files if not is_shipped(file)), path)
    fill_defaults(merged, path.parent, needs)
    config = _shortened(validate(merged.values, RunConfig, " + ".join(map(str, files))), merged.origins)
    config = _with_late(_with_labels(config, merged.origins), merged.origins)
    config = _with_weights(config, path.parent, merged.origins)
    check_together(config.recipe, Settings(engine=config.engine))
    _refuse_unknown_sources(config, path)
    _refuse_missing_sentinels(config, path)
    packed = config.data.pack
    if packed is not None and packed.sequence_length != config.train.sequence_length:
        raise ConfigError(
            f"{path}: data.pack.sequence_length is {packed.sequence_length}, train.sequence_length "
            f"{config.train.sequence_length}: rows are packed for one length. Set both to the same."
        )
    return LoadedRun(config, path, load_policy(path.parent / config.governance.policy), merged)


def _with_late(config: RunConfig, origins: dict[str, str]) -> RunConfig:
    """The configuration that reads contested sources last."""
    late = tuple(sorted(source.name for source in config.data.sources if source.contested))
    if not late:
        return config
    if config.train.mixture:
        raise ConfigError(
            f"[[train.mixture]] orders the rows, and contested = true of {', '.join(late)} does so, too; remove "
            "contested, and give these sources a weight in a last entry of the mixture only"
        )
    origins["train.late_sources"] = "the sources of [[data.sources]] with contested = true"
    return config.model_copy(update={"train": config.train.model_copy(update={"late_sources": late})})


def _with_labels(config: RunConfig, origins: dict[str, str]) -> RunConfig:
    """The configuration with a head for the labels that the data have."""
    wanted = config.data.encode.classification
    labels = len(wanted.labels) if wanted is not None else 0
    if config.model.num_labels not in (0, labels):
        raise ConfigError(
            f"model.num_labels = {config.model.num_labels}, and data.encode.classification has {labels} labels; remove "
            f"model.num_labels, which follows from them"
        )
    if not labels and config.model.pooling != "last":
        raise ConfigError(
            f"model.pooling = {config.model.pooling!r} belongs to a classification head, and there is no "
            f"[data.encode.classification]; add it, or remove model.pooling"
        )
    if not labels:
        return config
    if config.model.pooling == "mean" and (config.engine.sequence_parallel_size > 1 or config.engine.deterministic):
        raise ConfigError(
            "model.pooling = 'mean' needs whole rows, and on CUDA adds in no fixed order; set "
            "engine.sequence_parallel_size = 1 and engine.deterministic = false, or remove model.pooling"
        )
    if config.evaluation.tasks or config.engine.tensor_parallel_size > 1:
        raise ConfigError(
            "data.encode.classification trains a classifier, which scores no [evaluation] tasks and is not split over "
            "tensor ranks; remove the tasks, and set engine.tensor_parallel_size = 1"
        )
    origins["model.num_labels"] = "the labels of data.encode.classification"
    return config.model_copy(update={"model": config.model.model_copy(update={"num_labels": labels})})


def _shortened(config: RunConfig, origins: dict[str, str]) -> RunConfig:
    """The configuration with warm-up and decay that fit a short run."""
    optim, steps = config.optim, config.train.steps
    planned = optim.warmup_steps + optim.decay_steps
    if planned <= steps:
        return config
    shorter = {name: getattr(optim, name) * steps // planned for name in ("warmup_steps", "decay_steps")}
    origins.update({f"optim.{name}": "shortened to fit train.steps" for name in shorter})
    if read_ranks().first:
        get_logger(__name__).warning(
            "train.steps = %d is shorter than warm-up and decay (%d + %d steps): they take %d + %d in this run",
            steps, optim.warmup_steps, optim.decay_steps, *shorter.values(),
        )  # fmt: skip
    return config.model_copy(update={"optim": optim.model_copy(update=shorter)})

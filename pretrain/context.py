"""Context of the training loop: one value for all its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from governance.hooks import UNKNOWN_ENERGY
from governance.provenance import provenance
from pretrain.callbacks import Callbacks, most_seconds
from pretrain.config.training import Settings, TrainRecipe
from pretrain.distributed.layout import Layout, layout_of
from pretrain.distributed.preemption import StopRequested
from pretrain.distributed.process_group import HOST, Ranks, add_up
from pretrain.energy_budget import BudgetGuard
from pretrain.metrics.metrics_log import Record
from pretrain.preflight.hardware import arithmetic

if TYPE_CHECKING:
    import torch

    from pretrain.checkpoint.format import CheckpointStore
    from pretrain.checkpoint.save import Saver
    from pretrain.data.dataset import Rows
    from pretrain.distillation.distilled_training import Distillation
    from pretrain.distributed.watchdog import Heartbeat
    from pretrain.engine.engine import Engine
    from pretrain.evaluation.scores import Suite
    from pretrain.initial_weights.start import InitialWeights


class LoopMeter(Protocol):
    """The part of `step_meter.StepMeter` that the loop uses."""

    def waiting(self) -> AbstractContextManager[None]:
        """Count the time in this context as the step's wait for data."""

    def aside(self, phase: str) -> AbstractContextManager[Callable[[], float]]:
        """Count the time in this context for `phase` and for no step.

        Yields a clock of its seconds.
        """

    def wants_sample(self) -> bool:
        """Return whether this rank has time for another sample of the product."""

    def step(self, rows: int, tokens: int, targets: int, *, sample: bool = False) -> dict[str, Any]:
        """Figures of the step that ends now."""


@dataclass(kw_only=True)
class TrainContext:
    """Configuration, hardware, data and moving parts of one attempt.

    `train.py` fills the first fields, `loop.py` the last four once the engine is open.
    """

    recipe: TrainRecipe
    settings: Settings
    ranks: Ranks
    device: torch.device
    train_rows: Rows
    validation_rows: Rows | None
    checkpoints: CheckpointStore
    record: Record
    attempt: int
    energy: dict[str, Any]
    """Facts of the energy meter; the loop reports its step and checkpoint there, so that the ledger can account for
    what a kill wastes."""
    stop_requested: StopRequested
    """True once a signal asked the run to save and stop."""
    suite: Suite | None = None
    """Tasks of `[evaluation]`; None: there are none."""
    initial: InitialWeights | None = None
    """Weights of a folder to begin from; None: random ones."""
    distillation: Distillation | None = None
    """The teacher of `[train.distillation]`; None: there is none."""
    teacher: dict[str, Any] = field(default_factory=dict)
    """The teacher's identity, and its loss on the student's validation rows; the loop measures it before the first
    step."""
    budget: BudgetGuard = field(default_factory=BudgetGuard)
    """The policy's energy budget."""
    callbacks: Callbacks = field(default_factory=Callbacks)
    """Own functions that see the events; none on other ranks than the first."""
    measured: set[str] = field(default_factory=set)
    """Kinds of measurements that this attempt has made; the first of each may compile."""
    engine: Engine = field(init=False)
    saver: Saver = field(init=False)
    meter: LoopMeter = field(init=False)
    heartbeat: Heartbeat = field(init=False)

    @property
    def layout(self) -> Layout:
        """Layout of this rank.

        It gives the rows that the rank reads, and whether it counts them.
        """
        return layout_of(self.ranks, self.settings.engine)

    @property
    def share(self) -> tuple[int, int, int]:
        """This rank's rows of a step.

        The result is (micro batch size, data rank, data ranks).
        """
        return self.settings.engine.micro_batch_size, self.layout.data_rank, self.layout.data_ranks

    def summands(self, values: Sequence[float]) -> list[float]:
        """This rank's summands of `values` in a sum over ranks."""
        return [value * self.layout.counts for value in values]

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """Sum each value over all ranks, on the host; collective."""
        return add_up(self.summands(values), HOST)

    @property
    def callback_seconds(self) -> float:
        """Seconds that the first rank's callbacks may take after a step."""
        return most_seconds(self.recipe.train.callbacks, len(self.recipe.evaluation.tasks))

    @property
    def compiles(self) -> bool:
        """Return whether the model's forward pass is compiled, always so on CUDA."""
        return self.device.type == "cuda" or self.settings.engine.compile

    def facts(self) -> dict[str, Any]:
        """Facts of this attempt, which never enter a digest."""
        engine = self.settings.engine
        execution = {
            "world_size": self.ranks.world_size,
            "device": self.device.type,
            "zero_stage": engine.zero_stage,
            "micro_batch_size": engine.micro_batch_size,
            **({"rank_invariant": True} if engine.rank_invariant else {}),
            **arithmetic(),
            **({"deepspeed": engine.deepspeed} if engine.deepspeed else {}),
        }
        origin = {"origin": dict(self.settings.origin)} if self.settings.origin else {}
        return {
            **provenance(), "attempt": self.attempt, "execution": execution, "energy": dict(UNKNOWN_ENERGY), **origin
        }  # fmt: skip

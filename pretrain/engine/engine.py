"""Training engine: a model under DeepSpeed ZeRO.

Promises: a combination that cannot work or fit is refused before anything is built; on CPU nothing is compiled unless
requested, on CUDA attention and the loss compile their kernels in the first step. DeepSpeed's own attributes are used
here (in `_import_deepspeed` and `Engine.set_accumulation`), in `state.py`, `fragments.py`, `nvme.py`,
`expert_groups.py` and `step.py`; because of them the dependency is pinned below 0.20.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import gc
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.overrides import TorchFunctionMode

from governance.errors import ConfigError, PipelineError
from governance.processes import importing
from pretrain.config.training import EngineConfig, TrainRecipe
from pretrain.distributed.layout import layout_of
from pretrain.distributed.process_group import Ranks, broadcast, gather
from pretrain.encoder_decoder.model_of_pairs import EncoderDecoder
from pretrain.engine.deepspeed_config import compiles_blocks, deepspeed_config, without_leaf_modules
from pretrain.engine.expert_groups import mark_experts, marked, register, separated
from pretrain.engine.extensions import ASYNC_IO_OP, SHARED_MEMORY_OP, build_async_io, build_shared_memory
from pretrain.engine.fixed_order import FixedOrder, rank_pairs, take_over
from pretrain.engine.nvme import lock_swap_folder
from pretrain.engine.repeated_blocks import stop_at_repeated_blocks
from pretrain.engine.state import full_shape, optimizer_of, prepare_moments, reduces_once
from pretrain.engine.step import accumulate_in_one_pass, skip_norm_checks, update
from pretrain.engine.tensor_parallel import TensorParts
from pretrain.engine.uncompiled import unmark_optimizers, unmarked_imports, without_compilation, without_mlflow
from pretrain.engine.wrapped import Wrapped
from pretrain.finetuning.adapters import freeze
from pretrain.model.decoder import Batch, Decoder
from pretrain.model.expert_bias import attach_expert_bias
from pretrain.model.expert_parallel import ExpertParts, Shapes, split_experts
from pretrain.model.flash import documents_at_most
from pretrain.model.float8 import convert_to_float8
from pretrain.model.init import learning_rate_scale
from pretrain.model.layers import join_projections
from pretrain.model.sequence_parallel import split_sequences
from pretrain.model.vocabulary_part import VocabularyPart, split_vocabulary
from pretrain.optim.optimizers import make_optimizer, parameter_groups

Weight = Callable[[str, torch.Size], torch.Tensor]
"""(name, shape) -> initial fp32 values of a parameter."""


@dataclass(frozen=True)
class Engine(Wrapped):
    """Model under training; its parts are fixed, though training changes their contents."""

    @property
    def gradient_divisor(self) -> float:
        """Accumulation steps x ranks: DeepSpeed's divisor of summed gradients."""
        return float(self.deepspeed.gradient_accumulation_steps() * self.gradient_ranks)

    def set_accumulation(self, steps: int) -> None:
        """Set the number of micro batches per update.

        It may change only between updates, and must be equal on every rank.
        """
        if self.fixed is not None:
            self.fixed.begin(steps)
            return
        if steps == self.deepspeed.gradient_accumulation_steps():
            return
        micro, ranks = self.deepspeed.train_micro_batch_size_per_gpu(), self.deepspeed.dp_world_size
        self.deepspeed.set_train_batch_size(steps * micro * ranks)
        if hasattr(self.deepspeed.optimizer, "gradient_accumulation_steps"):  # copied at the start
            self.deepspeed.optimizer.gradient_accumulation_steps = steps
        self.deepspeed.micro_steps = 0  # DeepSpeed updates at multiples of the new number

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Objective and nats per token of a micro batch (see `Decoder.forward`)."""
        rows = batch.to(self.device)
        known = (documents_at_most(batch.segments),) if self.counts_documents else ()
        more = self.deepspeed.module.extra_inputs(batch, rows)
        return self.deepspeed(rows.tokens, rows.targets, rows.segments, rows.positions, *known, **more)

    def backward(self, objective: torch.Tensor, targets: int, last: bool) -> None:
        """Accumulate the gradient of `objective / targets` of the global batch.

        After the last micro batch of a global batch call `update`.
        """
        if self.fixed is not None:
            self.fixed.backward(self.deepspeed, objective / max(targets, 1))
            return
        self.deepspeed.backward(objective * (self.gradient_divisor / max(targets, 1)))
        if not last:
            self.deepspeed.step()  # counts micro batches, and computes nothing

    def group_names(self) -> list[str]:
        """Names of the parameter groups, ordered as `update`'s norms."""
        return list(dict.fromkeys(group["label"] for group in optimizer_of(self).param_groups))

    def expert_load(self) -> torch.Tensor:
        """`ExpertBias.greatest` of the last update, fp32 [1]; [0] without experts."""
        balance = self.deepspeed.module.expert_bias
        return torch.empty(0, device=self.device) if balance is None else balance.greatest[None]

    update = update
    """Update the weights, or skip; a function of `step.py`."""

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Shapes of whole parameters by name, in the order of `parameters`."""
        parts = self.tensor_parts
        return list(self.expert_shapes) or [
            (name, parts.whole_shape(name, full_shape(parameter))) for name, parameter in self.parameters()
        ]


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turn DeepSpeed and device errors that a user can fix into `PipelineError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PipelineError(
            f"the device's memory is full: {error}. Lower engine.micro_batch_size, or raise engine.zero_stage or the "
            f"number of ranks; none of them changes what is learned."
        ) from error
    except RuntimeError as error:
        if "DeepSpeed" not in type(error).__name__ and "can't allocate memory" not in str(error):
            raise
        raise PipelineError(f"the training engine refuses: {error}") from error
    except Exception as error:
        if type(error).__name__ == "FailOnRecompileLimitHit":
            raise PipelineError(
                f"torch.compile has reached its limit of shape classes for one function, and the next would run "
                f"uncompiled: {error}. Use fewer row lengths, or raise torch._dynamo.config.recompile_limit."
            ) from error
        if type(error) is not Exception or "loss scale already at minimum" not in str(error):
            raise
        raise PipelineError(
            "train.precision = 'fp16': gradients overflow at the smallest loss scale, 1; training stops. The last "
            "checkpoint is kept. Set precision = 'bf16' (the masters stay fp32), or lower optim.learning_rate."
        ) from error


def open_engine(  # noqa: PLR0913 # all that decides a model, and where it is
    recipe: TrainRecipe,
    settings: EngineConfig,
    vocabulary_size: int,
    ranks: Ranks,
    device: torch.device,
    weight: Weight | None,
    folder: Path = Path(),
    made: Callable[..., Decoder] | None = None,
) -> Engine:
    """Build the model with values from `weight` and wrap it in DeepSpeed.

    With `weight` None the state will be restored afterwards. `folder` is where own code is searched for first. `made`
    builds the model, from what a `Decoder` takes; None: a `Decoder`.

    Raises:
        PipelineError: the model does not fit, or the device's memory is full.
    """
    config = deepspeed_config(recipe, settings, ranks.world_size, device.type, vocabulary_size)
    # Below frozen weights a block's input has no gradient. Then DeepSpeed (0.19.8) takes the backward pass of a leaf
    # module for finished when it begins, and frees the weights that it needs.
    if Decoder.repeats_blocks or recipe.train.freezes:
        config = without_leaf_modules(config)
    deepspeed = _import_deepspeed(settings, ranks, device, recipe.train.precision)
    if settings.deepspeed:
        refuse_unknown_keys(config)
    with translated_errors():
        kind = made or (EncoderDecoder if recipe.model.encoder_layers else Decoder)
        make = functools.partial(_decoder, recipe, settings, vocabulary_size, kind)
        experts = _expert_parts(ranks, settings)
        register(experts, deepspeed.utils.groups, deepspeed.runtime.engine, deepspeed.runtime.bf16_optimizer)
        model, shapes = _build(deepspeed, config, make, weight, experts)
        attach_expert_bias(model, recipe.model, device)
        _adapt(model, recipe, settings, ranks, deepspeed)
        scale = functools.partial(learning_rate_scale, config=recipe.model)
        trained = [pair for pair in model.named_parameters() if pair[1].requires_grad]
        groups = parameter_groups(trained, recipe.optim, full_shape, scale)
        optimizer = make_optimizer(separated(groups, experts), recipe.optim, folder)
        with contextlib.redirect_stdout(io.StringIO()), unmarked_imports():  # it prints
            wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if hasattr(wrapped.optimizer, "bf16_groups"):
        accumulate_in_one_pass(wrapped.optimizer)
    if ranks.world_size == 1 and reduces_once(wrapped):
        wrapped.enable_backward_allreduce = False  # a sum over one rank, for three passes over all gradients
    _compile(wrapped, model, settings)
    engine = Engine(
        wrapped, settings.zero_stage, device,
        gradient_ranks=ranks.world_size // settings.tensor_parallel_size,
        tensor_parts=_tensor_parts(ranks, settings),
        counts_documents=settings.attention == "flash",
        clipping=0.0 if recipe.optim.optimizer == "muon" else recipe.optim.gradient_clipping,
        expert_parts=experts, expert_shapes=shapes,
        fixed=_fixed_order(wrapped, ranks, settings) if settings.rank_invariant else None,
    )  # fmt: skip
    prepare_moments(engine, 0)
    return engine


def _decoder(
    recipe: TrainRecipe, settings: EngineConfig, vocabulary_size: int, make: Callable[..., Decoder]
) -> Decoder:
    """The model, with its adapters; what does not learn is frozen."""
    made = make(recipe.model, vocabulary_size, settings.activation_checkpointing, settings.attention)
    if recipe.train.freezes:
        freeze(made, recipe, vocabulary_size)
    return made


def _adapt(model: Decoder, recipe: TrainRecipe, settings: EngineConfig, ranks: Ranks, deepspeed: Any) -> None:
    """Change a model in place for its precision and parallelism."""
    if settings.zero_stage == 3 and not Decoder.repeats_blocks:
        stop_at_repeated_blocks(model)
    if recipe.train.precision == "fp8":
        convert_to_float8(model)
    elif _joins_projections(recipe, settings):
        join_projections(model)
    if settings.sequence_parallel_size > 1:
        split_sequences(model, _sequence_group(ranks, settings))
    if settings.tensor_parallel_size > 1:
        whole = deepspeed.zero.GatheredParameters if settings.zero_stage == 3 else contextlib.nullcontext
        split_vocabulary(model.model.embed_tokens, model.lm_head, _vocabulary_part(ranks, settings), whole)


def _joins_projections(recipe: TrainRecipe, settings: EngineConfig) -> bool:
    """Return whether one product can compute attention's maps.

    They must be plain and whole.
    """
    plain = settings.tensor_parallel_size == 1 and recipe.train.adapter is None
    return plain and (settings.zero_stage < 3 or compiles_blocks(settings))


class _KeyRecorder(dict[str, Any]):
    """Dictionary that records which of its keys are read.

    A copy is the same object.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __copy__(self) -> _KeyRecorder:
        return self

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a key, which is recorded as read."""
        self.read.add(key)
        return super().get(key, default)


def refuse_unknown_keys(config: Mapping[str, Any]) -> None:
    """Raise if DeepSpeed refuses a key or value.

    Raises:
        ConfigError: names the keys.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    recorder = _KeyRecorder(config)
    try:
        DeepSpeedConfig(recorder)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors(include_url=False)]
        listed = "; ".join(f"{place}: {message}" for place, message in faults)
        raise ConfigError(f"engine.deepspeed: DeepSpeed refuses ({error.title}) {listed}") from None
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"engine.deepspeed: DeepSpeed refuses: {error}") from None
    if unknown := sorted(set(config) - recorder.read):
        raise ConfigError(f"engine.deepspeed: this DeepSpeed knows no key {', '.join(unknown)}; correct or remove it")


def _compile(wrapped: Any, model: Decoder, settings: EngineConfig) -> None:
    """Compile the model, or each block within DeepSpeed's hooks."""
    if compiles_blocks(settings):
        for block in model.model.layers:
            block.forward = torch.compile(block.forward)
    elif settings.compile or settings.deepcompile:
        wrapped.compile()


def _sequence_group(ranks: Ranks, settings: EngineConfig) -> Any:
    """Process group that shares rows with this rank."""
    tensor, sequence = settings.tensor_parallel_size, settings.sequence_parallel_size
    size = tensor * sequence
    firsts = range(0, ranks.world_size, size)
    groups = [range(rank, first + size, tensor) for first in firsts for rank in range(first, first + tensor)]
    return _own_group(ranks, settings, groups)


def _vocabulary_part(ranks: Ranks, settings: EngineConfig) -> VocabularyPart:
    """This rank's rows of the vocabulary, and its group."""
    size = settings.tensor_parallel_size
    group = _own_group(ranks, settings, [range(first, first + size) for first in range(0, ranks.world_size, size)])
    return VocabularyPart(size, layout_of(ranks, settings).tensor_rank, group)


def _expert_parts(ranks: Ranks, settings: EngineConfig) -> ExpertParts:
    size, count = settings.expert_parallel_size, ranks.world_size
    if size == 1:
        return ExpertParts()
    group = _own_group(ranks, settings, [range(first, first + size) for first in range(0, count, size)])
    replicas = _own_group(ranks, settings, [range(first, count, size) for first in range(size)])
    return ExpertParts(size, ranks.rank % size, group, replicas)


def _own_group(ranks: Ranks, settings: EngineConfig, groups: Iterable[Sequence[int]]) -> Any:
    """Process group of this rank; every rank helps to form every group."""
    mine = None
    timeout = datetime.timedelta(seconds=settings.collective_timeout_seconds)  # a new group has torch's own otherwise
    for members in groups:
        group = torch.distributed.new_group(list(members), timeout=timeout)
        mine = group if ranks.rank in members else mine
    return mine


def _fixed_order(wrapped: Any, ranks: Ranks, settings: EngineConfig) -> FixedOrder:
    """The step's own sums, in place of DeepSpeed's."""
    take_over(wrapped)
    named = [pair for pair in wrapped.module.named_parameters() if pair[1].requires_grad]
    return FixedOrder(named, [_own_group(ranks, settings, level) for level in rank_pairs(ranks.world_size)])


def _tensor_parts(ranks: Ranks, settings: EngineConfig) -> TensorParts:
    if settings.tensor_parallel_size == 1:
        return TensorParts()
    from deepspeed.utils import groups

    rank = layout_of(ranks, settings).tensor_rank
    return TensorParts(settings.tensor_parallel_size, rank, groups.get_tensor_model_parallel_group())


def _import_deepspeed(settings: EngineConfig, ranks: Ranks, device: torch.device, precision: str) -> Any:
    """Import DeepSpeed quietly and build the extensions that the settings need."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    built = settings.shared_memory_collectives and device.type == "cpu"
    if built:
        built = build_shared_memory(ranks, settings.extension_build_seconds)
    in_files = "nvme" in (settings.offload_optimizer, settings.offload_parameters)
    if in_files:
        fault = ""
        if ranks.local_rank == 0 and settings.nvme_path:
            try:
                lock_swap_folder(Path(settings.nvme_path).absolute())
            except PipelineError as error:
                fault = str(error)
        if faults := [found for found in gather(fault) if found]:  # every rank stops, so none waits for the first
            raise PipelineError(faults[0])
        build_async_io(ranks, settings.extension_build_seconds, device.type)
    unmark_optimizers()
    with importing(), unmarked_imports(), without_compilation(), without_mlflow():
        import deepspeed
        import deepspeed.ops
        import deepspeed.runtime.zero.muon.muon_optimizer
        from deepspeed.runtime import bf16_optimizer, utils
        from deepspeed.runtime.zero import stage3, stage_1_and_2
        from deepspeed.runtime.zero import utils as zero_utils

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its memory report at each start collects garbage six times: 1.5 s here, for unused lines.
    vars(bf16_optimizer)["see_memory_usage"] = lambda message, force=False: None
    # Stage 3 collects garbage between two copies of the weights, which frees memory of a GPU and none of a CPU.
    vars(zero_utils)["gc"] = SimpleNamespace(collect=lambda: 0) if device.type == "cpu" else gc
    skip_norm_checks((bf16_optimizer, stage_1_and_2, stage3), utils.is_invalid_grad_norm, precision)
    # Setting the table also avoids the compiler probes with which DeepSpeed would fill it.
    vars(deepspeed.ops)["__compatible_ops__"] = {SHARED_MEMORY_OP: built, ASYNC_IO_OP: in_files}
    # Before `initialize`: building a model at stage 3 already needs the number of ranks.
    with contextlib.redirect_stdout(io.StringIO()):
        deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)
    return deepspeed


class _Unfilled(TorchFunctionMode):
    """Skip torch's initialisation of parameters, which is overwritten.

    It costs 6 s per billion parameters.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _build(
    deepspeed: Any, config: dict[str, Any], make: Callable[[], Decoder], weight: Weight | None, experts: ExpertParts
) -> tuple[Decoder, Shapes]:
    """Model with its initial weights, and `Wrapped.expert_shapes`.

    At stage 3 a rank holds at most one whole parameter at a time. Experts of other ranks are never filled.
    """
    cut = config["zero_optimization"]["stage"] == 3
    shapes: Shapes = ()
    with deepspeed.zero.Init(config_dict_or_path=config) if cut else contextlib.nullcontext(), _Unfilled():
        model = make()
    if experts.size > 1:
        shapes = split_experts(model, experts)
        mark_experts(model.named_parameters(), experts)
    if weight is not None:
        named = list(model.named_parameters())
        _draw_and_broadcast(deepspeed, [pair for pair in named if not marked(pair[1])], weight, cut)
        with torch.no_grad():
            for name, parameter in named:
                if marked(parameter):  # each owner draws it, which needs no collective
                    parameter.copy_(weight(name, parameter.shape))
    return model, shapes


def _draw_and_broadcast(deepspeed: Any, named: list[tuple[str, nn.Parameter]], weight: Weight, cut: bool) -> None:
    """Draw this rank's parameters, and broadcast each in turn.

    `cut` states that ZeRO-3 holds them in pieces, which its own context fills.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ordered = sorted(named, key=lambda pair: -full_shape(pair[1]).numel())  # similar in size: none waits long
    for first in range(0, len(ordered), ranks):
        turn = ordered[first : first + ranks]
        drawn = weight(turn[rank][0], full_shape(turn[rank][1])) if rank < len(turn) else None
        for drawer, (_, parameter) in enumerate(turn):
            gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=drawer) if cut else None
            with gathered or contextlib.nullcontext(), torch.no_grad():
                if rank == drawer:
                    parameter.copy_(drawn)
                if not cut:
                    broadcast(parameter.data, drawer)

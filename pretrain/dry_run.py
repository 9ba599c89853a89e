"""What a start of training would be, said before it: `assay train CONFIG --dry-run`. Starts nothing, makes no artifact.

Promise: what it refuses, it refuses with the words and the exit code of a start on this machine: settings that do not
work together here (78), a GPU that is asked for and not there (78), a model that does not fit (1). What it does not
look at may still refuse: the gate, the rows, files of tasks, patterns of `[[optim.groups]]`. It never imports
DeepSpeed, and torch only to look for a GPU: not with `engine.device = "cpu"`. Price: where token shards may be, the
look-up of the corpus, which reads sources whose digests are not remembered in `fetch/digests.json`, and does so then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from data_pipeline.tokenizer import take_over
from governance.errors import ConfigError, MissingInput
from governance.files import json_text
from governance.stage import Runtime
from pretrain.batch_sizes import batch_sizes
from pretrain.compatibility import check_start
from pretrain.config import EngineConfig, TrainRecipe
from pretrain.deepspeed_config import deepspeed_config
from pretrain.distributed import Ranks, capability_of, device_of, gpus_beside
from pretrain.layout import data_ranks
from pretrain.memory import Available, available, estimate, host_share, in_words, refuse_beyond
from pretrain.model.counting import active_parameter_count, flops_per_token, parameter_count
from pretrain.run import corpus
from pretrain.run_config import Run


def dry_run(run: Run, runtime: Runtime, ranks: Ranks) -> Iterator[str]:
    """The lines, one after the other; a refusal comes once all lines that do not need its mend are out.

    Raises:
        ConfigError: the settings do not work on these ranks, or the GPU that they ask for is not there.
        PipelineError: the model does not fit.
    """
    recipe, engine = run.config.recipe, run.config.engine
    vocabulary, source = _vocabulary(run, runtime)
    yield f"vocabulary  {vocabulary:,} {source}"
    yield from _sizes(recipe, vocabulary)
    device, card, there_is = _place(engine, ranks)
    check_start(recipe, engine, ranks, device, *card)
    yield f"layout      {_layout(recipe, engine, ranks)}, on {device}"
    needed = estimate(recipe, engine, vocabulary, ranks.world_size, device)
    yield f"memory      {in_words(needed, there_is, ranks)}"
    dictionary = deepspeed_config(recipe, engine, ranks.world_size, device, vocabulary)
    yield f"deepspeed   {json_text(dictionary).rstrip()}"
    refuse_beyond(recipe, engine, vocabulary, (ranks, device), there_is)
    yield "refused     nothing; the gate, the rows, tasks and patterns of [[optim.groups]] are looked at when it starts"


def ranks_of(total: int | None, a_node: int) -> Ranks:
    """Rank 0 of `total` ranks, `a_node` of them on each node; none: one node.

    Raises:
        ConfigError: the nodes would not be alike.
    """
    world = total or a_node
    if world % a_node:
        raise ConfigError(f"--ranks {world} is no multiple of --processes {a_node}, the ranks of a node; change one")
    return Ranks(0, world, 0, a_node)


def _vocabulary(run: Run, runtime: Runtime) -> tuple[int, str]:
    """Ids of the tokens, and who says so. Sources are read only where token shards of this root could be of them."""
    if (runtime.root / "encode").is_dir():
        try:
            tokenizer = corpus(run, replace(runtime, make=False))["tokenizer"]
        except MissingInput:
            pass
        else:
            return int(tokenizer.stats["vocabulary_size"]), "ids, as the token shards have them"
    config, source = run.config.data.tokenizer, "ids, as [data.tokenizer] asks: there are no token shards yet"
    size = len(take_over(run.folder / config.path, config)[1].pieces) if config.path else config.vocabulary_size
    return size, source


def _sizes(recipe: TrainRecipe, vocabulary: int) -> Iterator[str]:
    """The model's, and the run's."""
    model, train = recipe.model, recipe.train
    parameters, active = parameter_count(model, vocabulary), active_parameter_count(model, vocabulary)
    experts = f" ({active:,} for each token)" if active < parameters else ""
    flops = flops_per_token(model, vocabulary, train.sequence_length)
    yield f"model       {parameters:,} parameters{experts}, {flops:,} FLOPs a token"
    sizes = batch_sizes(train)
    grown = " -> ".join(f"{size * train.sequence_length:,}" for size in sizes.sizes)
    total = sizes.before(train.steps + 1) * train.sequence_length
    yield f"tokens      {grown} a step, {total:,} in {train.steps:,} steps, {total * flops:.3g} FLOPs"


def _place(
    engine: EngineConfig, ranks: Ranks
) -> tuple[Literal["cpu", "cuda"], tuple[tuple[int, int] | None, int | None], Available]:
    """What a rank computes on here, its GPU's capability and number beside each other, and the memory it may use."""
    if engine.device == "cpu":
        return "cpu", (None, None), host_share(ranks)
    device = device_of(replace(ranks, local_rank=ranks.local_world_size - 1), engine.device)  # the last needs one too
    return device.type, (capability_of(device), gpus_beside(device)), available(device, ranks)


def _layout(recipe: TrainRecipe, engine: EngineConfig, ranks: Ranks) -> str:
    copies = data_ranks(ranks.world_size, engine)
    passes = [size // (engine.micro_batch_size * copies) for size in batch_sizes(recipe.train).sizes]
    return (
        f"{ranks.world_size} rank(s), {ranks.local_world_size} a node: {copies} data x {engine.sequence_parallel_size} "
        f"sequence x {engine.tensor_parallel_size} tensor; ZeRO stage {engine.zero_stage}, {recipe.train.precision}; "
        f"{' -> '.join(map(str, passes))} micro batch(es) of {engine.micro_batch_size} row(s) on each data rank a step"
    )

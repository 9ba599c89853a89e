"""Compatibility rules on ranks and nodes.

Imports no torch.
"""

from __future__ import annotations

from governance.errors import ConfigError
from pretrain.config.evaluation_config import SHORT
from pretrain.data.batch_size import refuse_uneven
from pretrain.distributed.layout import data_ranks
from pretrain.preflight.situation import Situation


def quantized_gradients_want_whole_nodes(s: Situation) -> str | None:
    """Refuse qgZ where ranks and visible GPUs differ.

    DeepSpeed takes each GPU that a node shows for a rank, counts nodes by it, and forms its groups over all ranks.
    """
    if not s.train.quantized_gradients:
        return None
    if s.engine.tensor_parallel_size > 1:
        return (
            "train.quantized_gradients with tensor parallelism: DeepSpeed would add up gradients of other parts of a "
            "matrix; set it to false, or tensor_parallel_size = 1"
        )
    if s.gpus in (0, s.local_world_size):
        return None
    return (
        f"train.quantized_gradients with {s.local_world_size} rank(s) on a node that shows {s.gpus} GPUs: DeepSpeed "
        f"takes each for a rank, and counts {(s.world_size or 1) // s.gpus} node(s); start {s.gpus} ranks a node, show "
        f"no more GPUs than ranks (CUDA_VISIBLE_DEVICES), or set it to false"
    )


def hpz_wants_stage_3(s: Situation) -> str | None:
    """Refuse hpZ below stage 3."""
    size = s.engine.hpz_partition_size
    if size == 1:
        return None
    if s.engine.zero_stage != 3:
        return f"engine.hpz_partition_size = {size} with engine.zero_stage = {s.engine.zero_stage}: set zero_stage = 3"
    if s.engine.tensor_parallel_size > 1:
        return f"engine.hpz_partition_size = {size} with tensor parallelism: DeepSpeed forms its groups over all ranks"
    if s.world_size is not None and s.world_size % size:
        return f"engine.hpz_partition_size = {size} does not divide {s.world_size} ranks; choose a divisor"
    return None


def sequence_parallelism_divides(s: Situation) -> str | None:
    """Ulysses cuts rows into equal stretches and gives each rank whole heads."""
    size, split = s.engine.sequence_parallel_size, s.engine.sequence_parallel_size * s.engine.tensor_parallel_size
    if size == 1:
        return None
    if s.train.sequence_length % size:
        return (
            f"engine.sequence_parallel_size = {size} does not divide train.sequence_length = "
            f"{s.train.sequence_length}; choose a divisor"
        )
    if s.model.num_key_value_heads % split:
        return (
            f"engine.sequence_parallel_size x tensor_parallel_size = {split} does not divide "
            f"model.num_key_value_heads = {s.model.num_key_value_heads}; each rank wants whole heads"
        )
    return None


def experts_see_whole_rows(s: Situation) -> str | None:
    """The balance of experts is asked of a row.

    Of stretches it would be another objective, under the same key.
    """
    if s.engine.sequence_parallel_size == 1 or s.model.moe is None:
        return None
    return (
        f"engine.sequence_parallel_size = {s.engine.sequence_parallel_size} with model.moe: experts are balanced over "
        f"whole rows, and it cuts them; set sequence_parallel_size = 1"
    )


def tensor_parallelism_divides(s: Situation) -> str | None:
    """Refuse tensor parallelism that does not divide heads or layers."""
    size = s.engine.tensor_parallel_size
    if size == 1:
        return None
    for name in ("num_key_value_heads", "intermediate_size"):
        if getattr(s.model, name) % size:
            return f"engine.tensor_parallel_size = {size} does not divide model.{name} = {getattr(s.model, name)}"
    return None


def tensor_parallelism_knows_the_model(s: Situation) -> str | None:
    """Refuse models that AutoTP would cut wrongly.

    Experts, matrices that Muon wants whole, and products in 8 bits.
    """
    if s.engine.tensor_parallel_size == 1:
        return None
    if s.model.moe is not None:
        return "engine.tensor_parallel_size with model.moe: experts are not cut; set tensor_parallel_size = 1"
    if s.optim.optimizer == "muon":
        return "engine.tensor_parallel_size with optim.optimizer = 'muon': Muon wants whole matrices; set it to 1"
    if s.model.qk_norm_whole:
        return "engine.tensor_parallel_size with model.qk_norm_whole: ranks hold a part of the heads; set it to 1"
    if s.train.precision == "fp8":
        return "engine.tensor_parallel_size with train.precision = 'fp8': set precision = 'bf16'"
    return None


def tensor_parallelism_keeps_state_out_of_files(s: Situation) -> str | None:
    """Refuse tensor parallelism with state in files.

    A save puts each matrix together, and would read a file of up to 10^8 elements for each.
    """
    if s.engine.offload_optimizer != "nvme" or s.engine.tensor_parallel_size == 1:
        return None
    return "engine.offload_optimizer = 'nvme' with tensor parallelism: set it to 'cpu', or tensor_parallel_size = 1"


def splits_divide_the_ranks(s: Situation) -> str | None:
    """Refuse splits that do not divide ranks and nodes."""
    split = s.engine.sequence_parallel_size * s.engine.tensor_parallel_size
    if s.world_size is None or s.world_size % split == 0:
        return None
    return (
        f"engine.sequence_parallel_size x tensor_parallel_size = {s.engine.sequence_parallel_size} x "
        f"{s.engine.tensor_parallel_size} does not divide {s.world_size} rank(s); start a multiple of {split}"
    )


def the_batch_divides(s: Situation) -> str | None:
    """Every rank adds up the same number of micro batches."""
    if s.world_size is None or splits_divide_the_ranks(s):
        return None
    try:
        refuse_uneven(s.train, s.engine.micro_batch_size, data_ranks(s.world_size, s.engine))
    except ConfigError as error:
        return str(error)
    return None


def questions_divide(s: Situation) -> str | None:
    """Refuse evaluation rows that sequence ranks cannot divide."""
    size, short = s.engine.sequence_parallel_size, min(SHORT, s.train.sequence_length)
    if not s.asked or short % size == 0:
        return None
    return (
        f"engine.sequence_parallel_size = {size} does not divide the {short} tokens of a row of questions; choose a "
        f"divisor, or ask no evaluation.tasks in training"
    )

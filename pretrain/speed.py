"""How fast training runs."""

from __future__ import annotations

from pretrain.job import Job
from pretrain.model.decoder import flops_per_token
from pretrain.tracking import peak


class Speed:
    """Turns the seconds of a step into tokens per second and MFU."""

    def __init__(self, job: Job) -> None:

        config = job.recipe.train
        self._length = config.sequence_length
        self._flops = flops_per_token(job.recipe.model, job.train_rows.vocabulary_size, config.sequence_length)
        ceiling = peak(job.device, config.precision)
        self._peak = ceiling.flops_per_second and ceiling.flops_per_second * job.ranks.world_size
        job.record(
            "start",
            len(job.store.steps()),
            world_size=job.ranks.world_size,
            peak_flops_per_second=self._peak,
            peak_source=ceiling.source,
            flops_per_token=self._flops,
        )

    def of(self, seconds: float, rows: int) -> dict[str, float | None]:
        """The figures of a step that took `seconds` for `rows` rows over all ranks."""
        rate = rows * self._length / seconds
        mfu = rate * self._flops / self._peak if self._peak else None
        return {"seconds": seconds, "tokens_per_second": rate, "mfu": mfu}

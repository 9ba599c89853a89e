"""Logit lens: the output projection on the stream after each block.

Each stream passes the final norm (under `norm_position = "post"` it is normalised already) and the output projection,
as if the blocks above were not there (nostalgebraist 2020; arXiv:2303.08112, section 2). The last one is the model's
output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pretrain.inference.loaded_model import LoadedModel

_POSITIONS = 64  # positions whose logits are in memory at once
_LIKELIEST = 5  # tokens that are kept at each position


@dataclass(frozen=True)
class Lens:
    """Predictions after each number of blocks, from none on."""

    nats: list[float | None]
    """Mean cross entropy of the text's next tokens; None for a text of one token."""
    divergence: list[float]
    """Mean Kullback-Leibler divergence of the model's output from it, in nats."""
    agreement: list[float]
    """Share of positions at which its likeliest token is the output's."""
    likeliest: torch.Tensor
    """int64 [blocks + 1, L, k], the likeliest tokens after each position, in order."""
    probabilities: torch.Tensor
    """fp32, their probabilities."""

    def settled(self, position: int) -> int:
        """Blocks after which the likeliest token no longer changes."""
        same = self.likeliest[:, position, 0] == self.likeliest[-1, position, 0]
        return len(same) - int(same.flip(0).long().cumprod(0).sum())


def logit_lens(model: LoadedModel, residual: Sequence[torch.Tensor], ids: Sequence[int]) -> Lens:
    """The lens of streams [L, hidden] (`Streams.residual`)."""
    most = min(_LIKELIEST, model.vocabulary_size)
    nats, divergence, agreement, tokens, probs = [], [], [], [], []
    targets = torch.tensor(list(ids[1:]), device=residual[0].device)
    for stream in residual:
        sums, found, shares = torch.zeros(3), [], []
        for start in range(0, len(stream), _POSITIONS):
            part = slice(start, start + _POSITIONS)
            logs, last = (_log_probabilities(model, one[part]) for one in (stream, residual[-1]))
            wanted = targets[part]
            sums[0] -= float(logs[: len(wanted)].gather(1, wanted[:, None]).sum())
            sums[1] += float((last.exp() * (last - logs)).sum())
            sums[2] += int((logs.argmax(-1) == last.argmax(-1)).sum())
            best = logs.topk(most, dim=-1)
            found.append(best.indices)
            shares.append(best.values.exp())
        nats.append(float(sums[0]) / len(targets) if len(targets) else None)
        divergence.append(max(0.0, float(sums[1]) / len(stream)))
        agreement.append(float(sums[2]) / len(stream))
        tokens.append(torch.cat(found))
        probs.append(torch.cat(shares))
    return Lens(nats, divergence, agreement, torch.stack(tokens).cpu(), torch.stack(probs).cpu())


def _log_probabilities(model: LoadedModel, stream: torch.Tensor) -> torch.Tensor:
    """[N, hidden] -> fp32 [N, vocabulary]."""
    decoder = model.decoder
    with torch.no_grad():
        normed = stream if decoder.config.norm_position == "post" else decoder.model.norm(stream)
        logs: torch.Tensor = decoder.lm_head(normed)[:, : model.vocabulary_size].float().log_softmax(-1)
    return logs

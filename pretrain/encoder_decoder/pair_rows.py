"""Pairs of packed rows, as the encoder's and the decoder's rows.

    tokens      s1 s2 |> t1 t2 | u1 |> v1 | padding      |>: the last token of the mark between source and target
    predicted         t1 t2 END     v1 END               END: the end-of-document token
    encoder     s1 s2 |>         u1 |>      padding      tokens that predict no target
    decoder           |> t1 t2      |> v1                tokens after which something is predicted

The last token of a source is read twice: it ends what the encoder reads, and begins what the decoder writes, whose
positions count from it. Rows keep their packing on both sides, so nothing but their ragged ends is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pretrain.model.attention_rule import Attend

_NONE = -1  # segment of the ragged end of a row


@dataclass(frozen=True)
class PairSide:
    """Rows [B, N] that the encoder or the decoder reads."""

    places: torch.Tensor
    """int64: position in the packed row."""
    positions: torch.Tensor
    """int64: position in the source or the target."""
    segments: torch.Tensor
    """Number of the pair within its row; -1 at the ragged end."""

    def of(self, columns: torch.Tensor) -> torch.Tensor:
        """The values [B, N] of packed rows [B, L]."""
        return columns.gather(1, self.places)


def row_sizes(targets: torch.Tensor, segments: torch.Tensor) -> tuple[int, int]:
    """Tokens of each side's longest row; the host waits for them."""
    read = _read(targets, segments)
    return int(read.sum(1).max()), max(1, int((targets >= 0).sum(1).max()))


def sides_of(
    targets: torch.Tensor, segments: torch.Tensor, positions: torch.Tensor, sizes: tuple[int, int]
) -> tuple[PairSide, PairSide]:
    """Sides of packed rows [B, L], none longer than `sizes`."""
    read, predicted = _read(targets, segments), targets >= 0
    places = torch.arange(targets.shape[1], device=targets.device).expand(targets.shape)
    begins = torch.where(read & predicted, places, 0).cummax(1).values
    encoder = _side(read, positions.long(), segments, sizes[0])
    return encoder, _side(predicted, places - begins, segments, sizes[1])


def _read(targets: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Tokens that are not a target of the preceding token."""
    aimed = (targets[:, :-1] >= 0) & (segments[:, 1:] == segments[:, :-1])
    return torch.cat([torch.ones_like(aimed[:, :1]), ~aimed], dim=1)


def _side(chosen: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor, size: int) -> PairSide:
    order = torch.argsort(~chosen, dim=1, stable=True)[:, :size]
    mine = chosen.gather(1, order)
    return PairSide(
        order, torch.where(mine, positions.gather(1, order), 0), torch.where(mine, segments.gather(1, order), _NONE)
    )


def attention_within(queries: torch.Tensor, keys: torch.Tensor, scale: float, causal: bool = False) -> Attend:
    """Attention of queries [B, M] over keys [B, N] of their segment.

    Later keys are excluded if `causal`.
    """
    seen = queries[:, :, None] == keys[:, None, :]
    # A ragged end must see something, itself if not the source: a softmax of nothing is NaN.
    seen = seen.tril() if causal else seen | (queries == _NONE)[:, :, None]
    return attention_of(seen[:, None], scale)


def attention_of(seen: torch.Tensor | None, scale: float) -> Attend:
    """Attention over the keys that are `seen`.

    Boolean, [B, 1, M, N]; None: all are seen.
    """

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)

    return attend

"""Continuations of prompts, in batches, with a key-value cache.

Prompts are sorted by length and read in batches. A row ends at the end-of-document token, at its most tokens, or where
the text fills the context. Once half of a batch's rows have ended, they leave it. Price: one pass over the prompts, one
pass per token over the rows that are left, and the memory of the cache (`kv_cache.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from governance.errors import PipelineError
from pretrain.inference.kv_cache import first_masks, next_masks, open_caches
from pretrain.inference.loaded_model import LoadedModel
from pretrain.inference.next_token import GREEDY, Sampling, choose
from pretrain.model.attention import DocumentMask

Ids = Sequence[int]
Finish = Literal["end", "stop", "length", "context"]
"""end: the model ended the text; stop: the caller did; length: the most tokens are reached; context: it is full."""
_CUDA_TOKENS = 128  # least length of prompts on CUDA, doubled as needed: attention is compiled for each length


@dataclass(frozen=True)
class Continuation:
    """Tokens that follow a prompt."""

    ids: tuple[int, ...]
    """Without the end-of-document token."""
    finish: Finish


def refuse_prompts(prompts: Sequence[Ids], context: int) -> None:
    """Raise unless each prompt has a token, and room for another.

    Raises:
        PipelineError: names the prompt, from 1.
    """
    for number, ids in enumerate(prompts, 1):
        if not len(ids):
            raise PipelineError(
                f"prompt {number}: is empty, and no token begins documents here (data.tokenizer.bos), so nothing comes "
                f"before the first token; give a text, if only a line break"
            )
    refuse_full("prompt", prompts, context)


def refuse_full(kind: str, texts: Sequence[Ids], context: int) -> None:
    """Raise unless a token fits after each text.

    Raises:
        PipelineError: names the text by its kind and number, from 1.
    """
    for number, ids in enumerate(texts, 1):
        if len(ids) >= context:
            raise PipelineError(
                f"{kind} {number}: has {len(ids)} tokens; the model's context is {context} (train.sequence_length), "
                f"and one token must fit after it. Shorten it by {len(ids) - context + 1} or more"
            )


def refuse_no_numbers(values: torch.Tensor, done: str) -> None:
    """Raise unless a model's values are numbers.

    Raises:
        PipelineError: names what cannot be `done` with a text.
    """
    if not values.isfinite().all():
        raise PipelineError(
            f"the model computes values that are not numbers, so nothing can be {done}: its training has diverged. "
            "Take an earlier checkpoint"
        )


def generate(  # noqa: PLR0913 # a prompt, what ends its text, and how it is computed
    model: LoadedModel,
    prompts: Sequence[Ids],
    end_of_document: int,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    batch_rows: int = 8,
    advance: Callable[[int], None] = lambda tokens: None,
    stops: Callable[[int, Ids], bool] = lambda number, ids: False,
) -> list[Continuation]:
    """Continue each prompt, in order.

    Args:
        model: the model.
        prompts: their ids, from 1 up to the context less 1.
        end_of_document: the token that ends a text.
        max_tokens: most tokens of a continuation.
        sampling: choice of the tokens.
        batch_rows: most prompts of a batch.
        advance: called with the number of tokens of each pass.
        stops: called with a prompt's number, from 0, and its continuation so far; ends that where true.

    Raises:
        PipelineError: a prompt is empty or too long, or the model computes no numbers.
    """
    refuse_prompts(prompts, model.context)
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    found: dict[int, Continuation] = {}
    with torch.no_grad():
        for start in range(0, len(order), batch_rows):
            batch = _TextRows(
                model, {number: prompts[number] for number in order[start : start + batch_rows]}, max_tokens
            )
            while batch.numbers:
                refuse_no_numbers(batch.logits, "continued")
                chosen = choose(batch.logits, sampling, batch.numbers, batch.step)
                advance(len(batch.numbers))
                found |= batch.add(chosen, end_of_document, stops)
    return [found[number] for number in range(len(prompts))]


class _TextRows:
    """Texts of one batch: prompts, continuations so far, cache."""

    def __init__(self, model: LoadedModel, prompts: dict[int, Ids], max_tokens: int) -> None:
        self.model, self.max_tokens, self.step = model, max_tokens, 0
        self.numbers = list(prompts)
        """Prompts whose rows are in the batch; a row that has ended stays until the batch shrinks."""
        self.made: dict[int, list[int]] = {number: [] for number in prompts}
        """Continuations that have not ended."""
        self.lengths = [len(ids) for ids in prompts.values()]
        self.device = model.decoder.device
        self.time = _padded(max(self.lengths), self.device)
        tokens = torch.zeros((len(prompts), self.time), dtype=torch.int64)
        segments, positions = torch.zeros_like(tokens, dtype=torch.int32), torch.zeros_like(tokens, dtype=torch.int32)
        for row, ids in enumerate(prompts.values()):
            start = self.time - len(ids)
            tokens[row, start:] = torch.as_tensor(list(map(int, ids)))
            segments[row, start:], positions[row, start:] = 1, torch.arange(len(ids), dtype=torch.int32)
        self.padding = torch.tensor([self.time - length for length in self.lengths], device=self.device)
        config = model.decoder.config
        self.caches = open_caches(config, self.time + min(max_tokens, model.context - min(self.lengths)))
        masks = first_masks(self.caches, segments.to(self.device), config)
        self.logits = self._pass(tokens, positions, masks)

    def _pass(self, tokens: torch.Tensor, positions: torch.Tensor, masks: Sequence[DocumentMask]) -> torch.Tensor:
        """Logits after the last token of each row, [B, vocabulary]."""
        decoder = self.model.decoder
        hidden, _ = decoder.model.through(tokens.to(self.device), positions.to(self.device), masks)
        logits: torch.Tensor = decoder.lm_head(hidden[:, -1:])[:, 0, : self.model.vocabulary_size]
        return logits

    def add(self, chosen: torch.Tensor, end: int, stops: Callable[[int, Ids], bool]) -> dict[int, Continuation]:
        """Add the next token to each row, and compute what follows.

        It returns the continuations that end with it.
        """
        self.step += 1
        ended = {}
        for number, length, token in zip(self.numbers, self.lengths, chosen.tolist(), strict=True):
            if number not in self.made:
                continue
            if token != end:
                self.made[number].append(token)
            stop = token != end and stops(number, self.made[number])
            why = "stop" if stop else self._finish(token == end, length)
            if why is not None:
                ended[number] = Continuation(tuple(self.made.pop(number)), why)
        if 2 * len(self.made) <= len(self.numbers):
            chosen = self._shrink(chosen)
        if self.numbers:
            self._advance(chosen)
        return ended

    def _finish(self, end: bool, length: int) -> Finish | None:
        if end:
            return "end"
        if self.step == self.max_tokens:
            return "length"
        return "context" if length + self.step == self.model.context else None

    def _shrink(self, chosen: torch.Tensor) -> torch.Tensor:
        """Drop the rows that have ended."""
        left = [row for row, number in enumerate(self.numbers) if number in self.made]
        self.numbers, self.lengths = ([values[row] for row in left] for values in (self.numbers, self.lengths))
        rows = torch.tensor(left, dtype=torch.int64, device=self.device)
        self.padding = self.padding[rows]
        for cache in self.caches:
            cache.keep_rows(rows)
        return chosen[rows]

    def _advance(self, chosen: torch.Tensor) -> None:
        # A row that has ended may be at the end of its context, after which a learned position has no vector.
        places = [min(length + self.step, self.model.context) - 1 for length in self.lengths]
        positions = torch.tensor(places, dtype=torch.int32)[:, None]
        masks = next_masks(self.caches, self.time, self.padding, self.time - self.step + 1 - min(self.lengths))
        self.logits = self._pass(chosen[:, None], positions, masks)
        self.time += 1


def _padded(length: int, device: torch.device) -> int:
    return length if device.type == "cpu" else max(_CUDA_TOKENS, 1 << (length - 1).bit_length())

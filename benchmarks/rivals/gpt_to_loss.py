"""The GPT of `gpt.py` under one of two recipes, start to end: fp32 on a CPU, AdamW, warm-up, a cosine to a tenth.

    python gpt_to_loss.py RECIPE SEED THREADS VOCABULARY STREAM.npy VALIDATION.npy TARGETS.npy

Rows are windows at random places of the stream. Prints the mean nats on the targets of the validation rows as JSON.
"""

import json
import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from gpt import GPT
from torch import nn

DECAY, LAST = 0.1, 0.1
SCORED = 64  # validation rows at once


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates."""

    layers: int
    width: int
    heads: int
    length: int
    rows: int
    steps: int
    rate: float
    second: float
    """Adam's second beta."""
    warm_up: int


RECIPES = {
    # nanoGPT's README for a CPU over its config/train_shakespeare_char.py, without the evaluations on the way
    "readme": Recipe(4, 128, 4, 64, 12, 2000, 1e-3, 0.99, 100),
    # the best of the rates 1e-3, 2e-3 and 3e-3 for a model of this size
    "tuned": Recipe(4, 256, 4, 256, 16, 600, 2e-3, 0.95, 20),
}


def model_of(recipe, vocabulary):
    """With GPT-2's start: 0.02, and smaller by the square root of twice the layers into the stream."""
    model = GPT(vocabulary, recipe.length, recipe.width, recipe.layers, recipe.heads)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            inward = name.endswith(("c_proj.weight", "c_out.weight"))
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * recipe.layers) if inward else 1))
    return model


def factor(recipe, step):
    """The share of the highest rate at a step, from 0."""
    if step < recipe.warm_up:
        return (step + 1) / (recipe.warm_up + 1)
    passed = (step - recipe.warm_up) / (recipe.steps - recipe.warm_up)
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * passed))


def train(recipe, model, tokens, seed):
    """Take all steps."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, recipe.second), fused=True)
    generator = torch.Generator().manual_seed(seed)
    span = torch.arange(recipe.length + 1)
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * factor(recipe, step)
        at = torch.randint(len(tokens) - recipe.length - 1, (recipe.rows, 1), generator=generator) + span
        batch = torch.from_numpy(tokens[at.numpy()].astype(np.int64))
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def validation(model, rows, targets):
    """Mean nats over the targets that are not -100."""
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for few, wanted in zip(rows.split(SCORED), targets.split(SCORED), strict=True):
            count = int((wanted >= 0).sum())
            nats += float(model(few, wanted)) * count
            tokens += count
    return nats / tokens


def main():
    """Train, score, print."""
    name, seed, threads, vocabulary, stream, rows, targets = sys.argv[1:8]
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    recipe = RECIPES[name]
    model = model_of(recipe, int(vocabulary))
    train(recipe, model, np.load(stream, mmap_mode="r"), int(seed))
    held, wanted = torch.from_numpy(np.load(rows)), torch.from_numpy(np.load(targets))
    print(json.dumps({"loss": validation(model, held, wanted)}))


if __name__ == "__main__":
    main()

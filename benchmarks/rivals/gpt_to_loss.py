"""The GPT of `gpt.py` for a fixed number of steps under AdamW and a cosine, as its users train it: fp32 on a CPU.

    python gpt_to_loss.py WEIGHTS HEADS THREADS STREAM.npy VALIDATION.npy TARGETS.npy STEPS RATE SEED

Rows are windows at random places of the stream. The answer to the last step tells the loss on the validation rows.
"""

import math
import sys

import numpy as np
import torch
import turns
from gpt import from_weights
from torch import nn

WARM_UP, ROWS, DECAY = 20, 16, 0.1


def validation(model, rows, targets):
    """Mean nats over the targets that are not -100."""
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(rows), ROWS):
            few, wanted = rows[at : at + ROWS], targets[at : at + ROWS]
            count = int((wanted >= 0).sum())
            nats += float(model(few, wanted)) * count
            tokens += count
    return nats / tokens


def main():
    """Steps in turn."""
    weights, heads, threads, stream, rows, targets, steps, rate, seed = sys.argv[1:10]
    steps, rate = int(steps), float(rate)
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    model = from_weights(weights, int(heads))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # GPT-2's: 0.02, and smaller by the square root of twice the layers into the stream
            inward = name.endswith(("c_proj.weight", "c_out.weight"))
            nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * len(model.blocks)) if inward else 1))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    tokens = torch.from_numpy(np.load(stream).astype(np.int64))
    held, wanted = torch.from_numpy(np.load(rows)), torch.from_numpy(np.load(targets))
    length = held.shape[1]
    generator = torch.Generator().manual_seed(int(seed))

    def step(number):
        factor = min(1.0, (number + 1) / WARM_UP) * (0.1 + 0.45 * (1 + math.cos(math.pi * number / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        at = torch.randint(len(tokens) - length - 1, (ROWS, 1), generator=generator) + torch.arange(length + 1)
        batch = tokens[at]
        loss = model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    turns.answer(ready=True)
    for number in range(steps):
        turns.wait()
        turns.answer(loss=step(number))
    turns.wait()
    turns.answer(loss=validation(model, held, wanted))


if __name__ == "__main__":
    main()

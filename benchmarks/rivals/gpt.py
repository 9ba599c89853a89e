"""The GPT-2 model as the small teaching trainers write it, and their step on a CPU: AdamW, clipping at 1.

As they ship it on a CPU it is fp32 and eager; "bf16" is autocast, and "compiled" goes through torch.compile.

Learned positions, LayerNorm before each part, GELU, one matrix for query, key and value, tied embeddings, no bias, no
dropout; attention over the whole row. Written for this comparison after the published description (GPT-2, section 2.3).

    python gpt.py WEIGHTS.safetensors TOKENS.npy HEADS THREADS [bf16] [compiled]
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
import turns
from safetensors.torch import load_file
from torch import nn


class Block(nn.Module):
    """Attention and feed-forward on a normalised stream."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.c_fc, self.c_out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        """Map the stream [B, L, width] to the next one."""
        rows, length, width = x.shape
        parts = self.c_attn(self.ln_1(x)).split(width, dim=2)
        q, k, v = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(seen.transpose(1, 2).contiguous().view(rows, length, width))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Token and position embeddings, blocks, the norm, the tied head."""

    def __init__(self, vocabulary, length, width, layers, heads):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)

    def forward(self, tokens, targets):
        """The mean cross entropy of tokens [B, L] against targets [B, L]."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def from_weights(path, heads):
    """The model with the weights of a file whose names are Llama's."""
    given = load_file(path)
    vocabulary, width = given["model.embed_tokens.weight"].shape
    length = given["model.embed_positions.weight"].shape[0]
    layers = 1 + max(int(name.split(".")[2]) for name in given if name.startswith("model.layers."))
    model = GPT(vocabulary, length, width, layers, heads)
    with torch.no_grad():
        model.wte.weight.copy_(given["model.embed_tokens.weight"])
        model.wpe.weight.copy_(given["model.embed_positions.weight"])
        for number, block in enumerate(model.blocks):
            at = f"model.layers.{number}"
            three = [given[f"{at}.self_attn.{part}_proj.weight"] for part in "qkv"]
            block.c_attn.weight.copy_(torch.cat(three))
            block.c_proj.weight.copy_(given[f"{at}.self_attn.o_proj.weight"])
            block.c_fc.weight.copy_(given[f"{at}.mlp.up_proj.weight"])
            block.c_out.weight.copy_(given[f"{at}.mlp.down_proj.weight"])
    return model


def batches(path):
    """Pairs (tokens, targets) of an array [steps, rows, length + 1]."""
    array = torch.from_numpy(np.load(path).astype(np.int64))
    return [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in array]


def main():
    """Steps in turn."""
    weights, tokens, heads, threads, *how = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model, given = from_weights(weights, int(heads)), batches(tokens)
    run = torch.compile(model) if "compiled" in how else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(number):
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in how):
            loss = run(*given[number % len(given)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    turns.take(step)


if __name__ == "__main__":
    main()

"""litgpt's model in bf16 autocast on a CPU, compiled as its `pretrain` does; its steps wait for their turn.

Its layers have no learned positions: it turns a quarter of each head's channels, so only the sizes are the same.

    python litgpt_steps.py WEIGHTS.safetensors TOKENS.npy HEADS THREADS
"""

import sys

import torch
import turns
from gpt import batches
from litgpt.model import GPT, Config
from safetensors.torch import load_file


def main():
    """Steps in turn."""
    weights, tokens, heads, threads = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    given = load_file(weights)
    vocabulary, width = given["model.embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in given if name.startswith("model.layers."))
    config = Config(
        block_size=given["model.embed_positions.weight"].shape[0], vocab_size=vocabulary, padded_vocab_size=vocabulary,
        n_layer=layers, n_head=int(heads), n_embd=width, rotary_percentage=0.25, parallel_residual=False, bias=False,
        norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", intermediate_size=4 * width, lm_head_bias=False,
    )  # fmt: skip
    model, rows = GPT(config), batches(tokens)
    run = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(number):
        inputs, targets = rows[number % len(rows)]
        with torch.autocast("cpu", torch.bfloat16):
            logits = run(inputs)
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    turns.take(step)


if __name__ == "__main__":
    main()

"""Hugging Face's Trainer on its own GPT-2 in bf16 on a CPU; its steps wait for their turn.

python hf_trainer.py WEIGHTS.safetensors TOKENS.npy HEADS THREADS
"""

import os
import sys
import tempfile

import numpy as np
import torch
import turns
from safetensors.torch import load_file

os.environ["WANDB_MODE"] = "disabled"
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


def from_weights(path, heads):
    """Its GPT-2 with the weights of a file whose names are Llama's; biases are 0."""
    given = load_file(path)
    vocabulary, width = given["model.embed_tokens.weight"].shape
    length = given["model.embed_positions.weight"].shape[0]
    layers = 1 + max(int(name.split(".")[2]) for name in given if name.startswith("model.layers."))
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=length, n_embd=width, n_layer=layers, n_head=heads,
        activation_function="gelu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(given["model.embed_tokens.weight"])
        model.transformer.wpe.weight.copy_(given["model.embed_positions.weight"])
        for number, block in enumerate(model.transformer.h):
            at = f"model.layers.{number}"
            three = [given[f"{at}.self_attn.{part}_proj.weight"].T for part in "qkv"]
            block.attn.c_attn.weight.copy_(torch.cat(three, dim=1))
            block.attn.c_proj.weight.copy_(given[f"{at}.self_attn.o_proj.weight"].T)
            block.mlp.c_fc.weight.copy_(given[f"{at}.mlp.up_proj.weight"].T)
            block.mlp.c_proj.weight.copy_(given[f"{at}.mlp.down_proj.weight"].T)
    return model


class InTurn(TrainerCallback):
    """Waits before each step, answers after it."""

    def on_train_begin(self, args, state, control, **other):
        """Answer that it is ready."""
        turns.answer(ready=True)

    def on_step_begin(self, args, state, control, **other):
        """Wait for its turn."""
        turns.wait()

    def on_step_end(self, args, state, control, **other):
        """Answer that the step is done."""
        turns.answer(loss=None)


def main():
    """Steps in turn."""
    weights, tokens, heads, threads = sys.argv[1:5]
    torch.set_num_threads(int(threads))
    array = np.load(tokens).astype(np.int64)
    rows = torch.from_numpy(array.reshape(-1, array.shape[-1])[:, :-1].copy())
    data = [{"input_ids": row, "labels": row} for row in rows]  # its models shift the labels themselves
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=array.shape[1], max_steps=1_000_000,
        use_cpu=True, bf16=True, report_to=[], save_strategy="no", logging_steps=1, optim="adamw_torch_fused",
        learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0.1, disable_tqdm=True,
    )  # fmt: skip
    sys.stdout = sys.stderr  # it prints its logs
    Trainer(model=from_weights(weights, int(heads)), args=arguments, train_dataset=data, callbacks=[InTurn()]).train()


if __name__ == "__main__":
    main()

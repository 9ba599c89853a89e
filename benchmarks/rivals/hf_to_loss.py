"""Hugging Face's Trainer on its GPT-2, with nanoGPT's settings, start to end.

    python hf_to_loss.py STEPS SEED THREADS VOCABULARY STREAM.npy VALIDATION.npy TARGETS.npy

Prints the mean nats on the targets of the validation rows as JSON.
"""

import json
import os
import sys
import tempfile

import numpy as np
import torch

os.environ["WANDB_MODE"] = "disabled"
from gpt_to_loss import DECAY, LAST, RECIPES, SCORED
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


class Windows(torch.utils.data.Dataset):
    """Windows at random places of the stream, one a row."""

    def __init__(self, stream, length, count, seed):
        self.stream, self.length = stream, length
        self.places = np.random.default_rng(seed).integers(len(stream) - length - 1, size=count)

    def __len__(self):
        """Rows of the whole training."""
        return len(self.places)

    def __getitem__(self, number):
        """One row; its models shift the labels themselves."""
        at = int(self.places[number])
        row = torch.from_numpy(self.stream[at : at + self.length].astype(np.int64))
        return {"input_ids": row, "labels": row}


def validation(model, rows, targets):
    """Mean nats over the targets that are not -100."""
    nats = 0.0
    with torch.no_grad():
        for few, wanted in zip(rows.split(SCORED), targets.split(SCORED), strict=True):
            logits = model(input_ids=few).logits.float().flatten(0, 1)
            nats += float(torch.nn.functional.cross_entropy(logits, wanted.flatten(), reduction="sum"))
    return nats / int((targets >= 0).sum())


def main():
    """Train, score, print."""
    steps, seed, threads, vocabulary = map(int, sys.argv[1:5])
    stream, rows, targets = sys.argv[5:8]
    torch.set_num_threads(threads)
    recipe = RECIPES["readme"]
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=vocabulary, n_positions=recipe.length, n_embd=recipe.width, n_layer=recipe.layers,
        n_head=recipe.heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False, bos_token_id=None,
        eos_token_id=None,
    ))  # fmt: skip
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=recipe.rows, max_steps=steps, use_cpu=True,
        seed=seed, report_to=[], save_strategy="no", logging_strategy="no", optim="adamw_torch_fused",
        learning_rate=recipe.rate,
        adam_beta2=recipe.second, weight_decay=DECAY, max_grad_norm=1.0, warmup_steps=min(recipe.warm_up, steps - 1),
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": LAST}, disable_tqdm=True,
    )  # fmt: skip
    data = Windows(np.load(stream, mmap_mode="r"), recipe.length, steps * recipe.rows, seed)
    printed, sys.stdout = sys.stdout, sys.stderr  # it prints its logs
    Trainer(model=model, args=arguments, train_dataset=data).train()
    model.eval()
    held, wanted = torch.from_numpy(np.load(rows)), torch.from_numpy(np.load(targets))
    printed.write(json.dumps({"loss": validation(model, held, wanted)}) + "\n")


if __name__ == "__main__":
    main()

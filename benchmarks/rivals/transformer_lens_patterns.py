"""Attention patterns that TransformerLens records on folders of `transformers`, of the same tokens; prints its version.

    python transformer_lens_patterns.py FOLDER[,FOLDER...] TOKENS.json OUT_FOLDER

It writes OUT_FOLDER/<name of FOLDER>.safetensors with a tensor [layers, heads, tokens, tokens].
"""

import importlib.metadata
import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast


def stand_in():
    """A tokenizer, which a bridge needs and tokens do not."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]", pad_token="[UNK]")


def main():
    """Record each folder's model."""
    folders, tokens, out = sys.argv[1].split(","), json.loads(pathlib.Path(sys.argv[2]).read_text()), sys.argv[3]
    for folder in folders:
        bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32, tokenizer=stand_in())
        with torch.no_grad():
            _, cache = bridge.run_with_cache(torch.tensor([tokens]))
        patterns = [cache[f"blocks.{layer}.attn.hook_pattern"][0] for layer in range(bridge.cfg.n_layers)]
        target = pathlib.Path(out) / f"{pathlib.Path(folder).name}.safetensors"
        save_file({"patterns": torch.stack(patterns).float().contiguous()}, target)
    print(json.dumps({name: importlib.metadata.version(name) for name in ("transformer-lens", "transformers")}))


if __name__ == "__main__":
    main()

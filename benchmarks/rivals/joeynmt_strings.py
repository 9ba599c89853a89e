"""Training and translations of joeynmt on the tokens of ours: setting.json, train.src and train.trg of a folder.

    python joeynmt_strings.py train|translate FOLDER SEED

The vocabulary is ours, a token per word, so both learn the same targets. `translate` writes the ids of each
translation to FOLDER/joeynmt-SEED.json.
"""

import json
import os
import sys
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # it loads checkpoints that hold more than tensors

import torch
from joeynmt.config import parse_global_args
from joeynmt.prediction import predict, prepare
from joeynmt.training import train

SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")


def config(folder, seed):
    """Setting of ours in joeynmt's words."""
    ours = json.loads((folder / "setting.json").read_bytes())
    model, side = ours["model"], {"level": "word", "lowercase": False, "max_length": 1000}
    (folder / "vocabulary.txt").write_text("\n".join([*SPECIAL, *map(str, range(ours["vocabulary"]))]) + "\n")
    side["voc_file"] = str(folder / "vocabulary.txt")
    stack = {
        "type": "transformer", "num_heads": model["num_attention_heads"], "hidden_size": model["hidden_size"],
        "ff_size": model["intermediate_size"], "dropout": model["dropout"], "layer_norm": "post", "activation": "relu",
        "embeddings": {"embedding_dim": model["hidden_size"], "scale": True, "dropout": model["dropout"]},
    }  # fmt: skip
    return ours, {
        "name": "strings", "joeynmt_version": "2.3.0", "model_dir": str(folder / f"joeynmt-{seed}"),
        "use_cuda": False, "fp16": False, "random_seed": seed,
        "data": {
            "train": str(folder / "train"), "dev": str(folder / "dev"), "dataset_type": "plain",
            "src": {"lang": "src", **side}, "trg": {"lang": "trg", **side},
        },
        "training": {
            "normalization": "tokens", "loss": "crossentropy", "label_smoothing": model["label_smoothing"],
            "optimizer": "adam", "adam_betas": [0.9, 0.98], "weight_decay": 0.0, "scheduling": "noam",
            "learning_rate": ours["rate"], "learning_rate_warmup": ours["warmup"], "learning_rate_min": 0.0,
            "learning_rate_factor": ours["rate"] * (model["hidden_size"] * ours["warmup"]) ** 0.5,
            "batch_size": ours["batch"], "batch_type": "sentence", "shuffle": True, "epochs": 10**6,
            "updates": ours["updates"], "logging_freq": 100, "validation_freq": 10**9,
        },
        "testing": {"beam_size": 4, "beam_alpha": 0.6, "batch_size": 64, "batch_type": "sentence"},
        "model": {
            "initializer": "xavier_uniform", "bias_initializer": "zeros", "embed_initializer": "normal",
            "embed_init_weight": model["embedding_range"], "tied_embeddings": True, "tied_softmax": True,
            "encoder": {**stack, "num_layers": model["encoder_layers"]},
            "decoder": {**stack, "num_layers": model["num_hidden_layers"]},
        },
    }  # fmt: skip


def translate(ours, settings, folder, seed):
    """Write the ids of each translation."""
    settings["testing"]["load_model"] = str(folder / f"joeynmt-{seed}" / "latest.ckpt")
    args = parse_global_args(settings, rank=0, mode="translate")
    model, _, _, sources = prepare(args, rank=0, mode="translate")
    for prompt in ours["prompts"]:
        sources.set_item(" ".join(map(str, prompt[: -ours["mark"]])))
    _, _, _, written, _, _ = predict(
        model=model, data=sources, compute_loss=False, device=args.device, rank=0, n_gpu=0, normalization="none",
        num_workers=0, args=args.test, autocast=args.autocast,
    )  # fmt: skip
    found = [[int(token) for token in tokens if token not in SPECIAL] for tokens in written]
    (folder / f"joeynmt-{seed}.json").write_text(json.dumps(found))


def main():
    """Run the part that the command line names."""
    part, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    ours, settings = config(folder, seed)
    if part == "translate":
        translate(ours, settings, folder, seed)
        return
    for side in ("src", "trg"):  # it asks for one, and never reads it: no validation falls within the updates
        first = (folder / f"train.{side}").read_text().partition("\n")[0]
        (folder / f"dev.{side}").write_text(f"{first}\n")
    Path(settings["model_dir"]).mkdir()
    torch.manual_seed(seed)  # the initial weights: it seeds itself after they are drawn
    train(0, 1, settings, skip_test=True)


if __name__ == "__main__":
    main()

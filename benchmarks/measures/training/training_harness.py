"""An exported model under lm-evaluation-harness, against our own scores of the same questions.

Two tiny models, trained for some steps on the test data's books: one becomes a `LlamaForCausalLM`, the other needs the
code that `assay export` writes next to it. Each answers the first questions of ARC easy from a local file, by
`assay evaluate` and by the harness in an environment of its own, without network.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

from benchmarks.measures import rivals
from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.training.training_setting import assay, prepare

CONFIG = """
[model]
hidden_size = 64
intermediate_size = 128
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 512
{choices}

[optim]
learning_rate = 1e-2
warmup_steps = 5

[train]
sequence_length = 512
global_batch_size = 8
steps = 60
precision = "fp32"
validate_every_steps = 0

[tracking]
mode = "disabled"

[[evaluation.tasks]]
name = "arc-easy"
format = "arc"
path = "questions.jsonl"
"""
FAMILIES = {"LlamaForCausalLM": "", "AssayForCausalLM": 'feed_forward = "relu2"\nqk_norm = true'}
SCORES = ("acc", "acc_norm", "acc_stderr", "acc_norm_stderr")


def lm_eval(quick: bool) -> list[Goal]:
    """The differences of scores, and of the log likelihood of every choice."""
    goals = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        questions = _questions(folder / "questions.jsonl", 60 if quick else 500)
        for family, choices in FAMILIES.items():
            goals += _one(folder, questions, family, CONFIG.format(choices=choices))
    return goals


def _questions(path: Path, count: int) -> Path:
    """The first questions of the test data's ARC easy."""
    source = Path(os.environ["ASSAY_TEST_DATA"]) / "evals" / "arc-easy.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        path.write_text("".join(next(lines) for _ in range(count)), encoding="utf-8")
    return path


def _one(folder: Path, questions: Path, family: str, config: str) -> list[Goal]:
    path, root = prepare(folder, config, 3_000_000, 1024), folder / "root"
    assay("train", path, "--root", root)
    [ours] = json.loads(assay("evaluate", path, "last", "--root", root, "--json"))["tasks"]
    checkpoint = _newest(root)
    target = folder / family
    assay("export", path, checkpoint, target, "--root", root)
    [written] = json.loads((target / "config.json").read_text())["architectures"]
    if written != family or ours["left_out"]:
        raise RuntimeError(f"{written} was written where {family} was meant, or {ours['left_out']} left out")
    theirs = rivals.harness(target, questions, folder)
    nats = _nats(path, checkpoint, root)
    if [len(row) for row in nats] != [len(row) for row in theirs["nats"]]:
        raise RuntimeError("the two did not ask the same questions")
    pairs = [pair for rows in zip(nats, theirs["nats"], strict=True) for pair in zip(*rows, strict=True)]
    note = f"{ours['questions']} questions, acc {theirs['acc']:.4f}, acc_norm {theirs['acc_norm']:.4f}; " + ", ".join(
        f"{name} {version}" for name, version in theirs["versions"].items()
    )
    scores = max(abs(ours[name] - theirs[name]) for name in SCORES)
    return [
        Goal(f"lm_eval_score_difference_{family}", scores, 1e-9, "<=", note=note),
        Goal(f"lm_eval_nats_difference_{family}", max(abs(a - b) for a, b in pairs), 1e-3, "<="),
        figure(f"lm_eval_nats_of_a_choice_{family}", sum(b for _, b in pairs) / len(pairs)),
    ]


def _newest(root: Path) -> Path:
    """The checkpoint of the run that ended last."""
    newest = max(root.glob("train/*/manifest.json"), key=lambda path: path.stat().st_mtime)
    return root / Path(json.loads(newest.read_bytes())["stats"]["checkpoint"]["path"])


def _nats(path: Path, checkpoint: Path, root: Path) -> list[list[float]]:
    """Log-likelihood of each choice of each question, from which `assay evaluate` computes its scores."""
    from assay.config import load_run
    from assay.pipeline import corpus
    from data_pipeline.tokens.tokenizer import load_encoder
    from governance.stage import Runtime
    from pretrain.checkpoint.format import read_checkpoint
    from pretrain.evaluation.loglikelihood import score
    from pretrain.evaluation.scores import encode_tasks
    from pretrain.evaluation.tasks import open_tasks
    from pretrain.evaluation.validation import load_decoder, nats_with

    run = load_run(path, [])
    encode = load_encoder(corpus(run, Runtime(root, make=False))["tokenizer"], root).encode
    tasks = open_tasks(run.config.evaluation, run.folder)
    suite = encode_tasks(tasks, encode, run.config.train.sequence_length)
    model = load_decoder(read_checkpoint(checkpoint, root), root).eval()
    found = iter(score(nats_with(model), suite.texts[0], suite.window))
    return [[next(found).nats for _ in question.choices] for question in tasks[0].questions]

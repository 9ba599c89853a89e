"""A small run: its file (one source, two layers, twelve steps) and its texts; for tests and measures of whole runs."""

import json
import random
from pathlib import Path

from governance.signing.dsse import private_key

SMALL_RUN = """
[[data.sources]]
type = "jsonl"
name = "tales"
paths = ["*.jsonl"]
licence = "CC0-1.0"

[data.tokenizer]
vocabulary_size = 512

[data.encode]
validation_share = 0.1

[governance]
policy = "policy.toml"
signing_key = "key.pem"

[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64

[optim]
learning_rate = 1e-2
warmup_steps = 2
decay_steps = 4

[train]
sequence_length = 64
global_batch_size = 4
steps = 12
validate_every_steps = 6
validation_rows = 8

[checkpoint]
every_steps = 4

[engine]
micro_batch_size = 4
threads = 1

[tracking]
mode = "disabled"
"""

_TEXT = (
    "river stone garden window market evening letter teacher forest station bridge harbour kitchen "
    "machine summer winter morning village engine doctor painter soldier library mountain island captain "
    "paper silver bread music story voice question answer journey morning candle mirror shadow storm "
    "valley field horse carriage street corner people woman man child friend neighbour walked carried "
    "opened watched remembered followed found built wrote heard crossed kept brought turned waited "
    "laughed quiet narrow bright heavy distant ancient gentle broken early wooden careful slowly often "
    "never always perhaps together again before after under over between"
)
_WORDS = _TEXT.split()
_GLUE = ("the", "of", "and", "to", "that", "with", "have", "be")


def tale(seed: int, words: int = 90) -> str:
    """A text that every filter keeps, unlike any other seed's."""
    chance = random.Random(seed)
    parts = []
    for number in range(words):
        pool = _GLUE if number % 3 == 1 else _WORDS
        word = chance.choice(pool)
        parts.append(word.capitalize() if number % 11 == 0 else word + ("." if number % 11 == 10 else ""))
    return " ".join(parts) + "."


def write_run(folder: Path, text: str = SMALL_RUN) -> None:
    """A run's file in a folder, and the key that it names."""
    (folder / "run.toml").write_text(text)
    private_key(folder / "key.pem")


def write_tales(path: Path, seeds: range) -> None:
    """One JSONL file of tales."""
    path.write_text("".join(json.dumps({"text": tale(seed)}) + "\n" for seed in seeds))

"""What several test files need: a small honest corpus, and a run's file for it."""

import json
import random
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("assay", deadline=None)  # a test asks what is true, not how fast
hypothesis.settings.load_profile("assay")

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

CONFIG = """
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


def tale(seed: int, words: int = 90) -> str:
    """A text that every filter keeps, unlike any other seed's."""
    chance = random.Random(seed)
    parts = []
    for number in range(words):
        pool = _GLUE if number % 3 == 1 else _WORDS
        word = chance.choice(pool)
        parts.append(word.capitalize() if number % 11 == 0 else word + ("." if number % 11 == 10 else ""))
    return " ".join(parts) + "."


def write_tales(path: Path, seeds: range) -> None:
    """One JSONL file of tales."""
    path.write_text("".join(json.dumps({"text": tale(seed)}) + "\n" for seed in seeds))


@pytest.fixture(autouse=True, scope="session")
def own_keys(tmp_path_factory: pytest.TempPathFactory):
    """Keys that a command makes on first use lie in a folder of the tests, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.delenv("ASSAY_SITE_POLICY", raising=False)
        yield


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a run's file, a policy and two files of documents."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "run.toml").write_text(CONFIG)
    (folder / "policy.toml").write_bytes((Path(__file__).parents[1] / "configs" / "policy.toml").read_bytes())
    write_tales(folder / "a.jsonl", range(60))
    write_tales(folder / "b.jsonl", range(60, 120))
    return folder


@pytest.fixture
def tales():
    """`write(path, seeds)`: one JSONL file of tales."""
    return write_tales


SECTIONS = """
[data.lists]
domains = ["blocked.txt"]
words = { en = ["words.txt"] }

[data.clean]
presets = ["gopher", "fineweb"]
min_stop_words = 1
max_listed_words = 0

[[data.classifiers]]
name = "quality"
paths = ["more/labelled.jsonl"]
positive = ["good"]
held_out_share = 0.4
min_score = 0.01

[data.paragraphs]

[data.decontaminate]
[[data.decontaminate.sets]]
name = "quiz"
paths = ["more/quiz.jsonl"]
fields = ["question"]
answer_fields = ["answer"]

[data.mix]
weights = { tales = 1.0 }

[data.pack]
sequence_length = 64
"""


@pytest.fixture
def everything(project, tales):
    """The small project with every stage, and something for each to remove."""
    text = (project / "run.toml").read_text()
    text = text.replace("[data.tokenizer]", SECTIONS + "\n[data.tokenizer]").replace(
        'licence = "CC0-1.0"', 'licence = "CC0-1.0"\nurl_field = "url"'
    )
    (project / "run.toml").write_text(text)
    rows = [json.loads(line) for line in (project / "a.jsonl").read_text().splitlines()]
    question = "Which of the four gentle soldiers carried the broken mirror across the frozen harbour that morning?"
    rows[0]["text"] += f"\n\n{question}\n\n" + rows[0]["text"][:60]
    rows[1]["url"] = "https://www.blocked.example/page"
    rows[2]["text"] += " Frobnicate."
    shared = "The council of the harbour met in the evening and read the letter that the captain had written in winter."
    for row in rows[3:5]:
        row["text"] += "\n\n" + shared
    (project / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "more").mkdir()
    (project / "blocked.txt").write_text("0.0.0.0 blocked.example\n")
    (project / "words.txt").write_text("frobnicate\n")
    (project / "more" / "quiz.jsonl").write_text(json.dumps({"question": question, "answer": "the second"}) + "\n")
    chance = random.Random(2)
    good = [(" ".join(chance.choice(("river", "garden", "music")) for _ in range(20)), "good") for _ in range(40)]
    bad = [(" ".join(chance.choice(("spam", "viagra", "casino")) for _ in range(20)), "bad") for _ in range(40)]
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in good + bad)
    (project / "more" / "labelled.jsonl").write_text("".join(lines))
    return project

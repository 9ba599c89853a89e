"""Every command of the README and of docs/, run in the order of its page, or left out with the reason."""

import contextlib
import datetime
import io
import itertools
import json
import random
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from assay.cli.main import main
from tests.conftest import CONFIG, write_tales
from tests.governance.upload_server import TOKEN
from tests.test_docs import PAGES, ROOT, WORDS, blocks, commands, inline, parses

# Pattern of commands -> why the test does not run them, with the test of their effect.
LEFT_OUT = {
    r"git clone |\. |make ": "the tests have an installation: tests/test_quickstart.py, tests/test_release.py",
    r"assay slurm (submit (?!first\S+ --local)|retry)": "needs a cluster: tests/cluster/test_whole_run.py",
    r"assay run corpus.toml configs/1b.toml": "trains a billion parameters: tests/assay/test_run_file.py",
    r"assay governance check configs/quickstart.toml": "needs the package index: tests/test_quickstart.py",
    r"assay (classify |(run|export) labels.toml)": "starts from an export: tests/assay/test_classification.py",
    r"assay ((run|generate) .*chats.toml|export .* --adapter)": "starts from an export: tests/assay/test_finetuning.py",
    r"assay train my.toml --nproc 4": "starts four ranks; the README's command starts two",
    r"assay run inspect-NAME/run.toml configs/10m.toml": "trains 600 steps: tests/assay/test_inspect.py",
    r"pip install |export '?RAY_|(srun .* )?ray |'?first=|until |.* --engine ray": "needs a Ray cluster: "
    "tests/governance/test_ray_cluster.py",
    r"assay (run|governance check) run.toml": "two people sign: tests/governance/test_fail_open_rules.py",
    r"assay governance review .*--withdraw": "needs a refusal: tests/governance/test_fail_open.py",
    r"assay (teacher-logits |run --root runs/my student.toml)": "needs a teacher: tests/assay/test_distilled_run.py",
    r"assay plan .*--from": "needs a run on such nodes: tests/assay/test_plan.py",
    r"assay experiment scaling ": "trains nine models: tests/assay/test_scaling_experiment.py",
    r"assay experiment mixture ": "trains nine models: tests/assay/test_mixture_experiment.py",
    r"assay experiment claims ": "trains many models for hours: tests/pretrain/test_measured.py",
    r"assay (translate |run pairs.toml )": "needs pairs: tests/assay/test_translation.py",
    r"assay audit-training ": "needs several checkpoints: tests/assay/test_audit_training.py",
    r"assay governance takedown ": "needs a document that was read late: tests/assay/test_takedown.py",
    r"lm_eval ": "needs an environment of its own: benchmarks/training.py",
}
IN_ITS_ROOT = ("governance sign", "governance prove")  # commands without a run's file, so without its last checkpoint
EXIT_CODES = {"assay governance diff A B": 1}  # as its page says
HOW_TOS = [f"howto/{name}.md" for name in ("corpus", "dedup", "policy", "review", "slurm", "takedown", "report")]
FIRST = [(ROOT / "docs" / name).resolve() for name in ("lineage.md", "../README.md", "tutorial.md", *HOW_TOS)]
READING = [*FIRST, *(page for page in PAGES if page.resolve() not in FIRST)]

# The run of the pages of reference, which call it CONFIG or my.toml; lineage.md makes its keys.
OWN = {
    "my.toml": CONFIG.replace('"*.jsonl"', '"tales/*.jsonl"')
    .replace('"policy.toml"', '"configs/policy.toml"')
    .replace('signing_key = "key.pem"\n', "")
    .replace("global_batch_size = 4", "global_batch_size = 64")
    .replace("micro_batch_size = 4", "micro_batch_size = 1")
    + """
[data.pack]
sequence_length = 64

[[data.classifiers]]
name = "quality"
paths = ["labelled.jsonl"]
positive = ["good"]
held_out_share = 0.4
min_score = 0.01

[model_audit]
templates = "templates.toml"
""",
    "kpis.toml": """
[experiment]
name = "trial"
[[kpi]]
name = "solved"
kind = "share"
column = "solved"
baseline = 0.5
smallest_effect = 0.4
""",
    "outcomes.csv": "unit,arm,solved\n"
    + "".join(f"{unit},{('control', 'treatment')[unit % 2]},{int(unit % 4 != 0)}\n" for unit in range(60)),
    "keyed.toml": """
base = "my.toml"

[governance]
signing_key = "job.pem"
trusted_keys = ["root.pem.pub"]
""",
    "templates.toml": """
version = 1
[frames]
trait = ["They described {term} as {word}"]
[terms.gender]
female = ["a woman"]
male = ["a man"]
[words.trait]
warmth = ["kind"]
competence = ["skilled"]
""",
}


def steps(page):
    """The commands of a page by line, those between backticks included if they have their arguments."""
    named = [(line, words) for line, words in inline(page) if not parses(words)]
    return sorted([*commands(page), *named], key=lambda step: step[0])


def reason(words):
    return next((why for pattern, why in LEFT_OUT.items() if re.match(pattern, shlex.join(words))), None)


def glob(word, folder):
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word)) if "/" in word and "*" in word else []


class Reader:
    """A checkout, and what a reader types in it for the words in capitals of a page."""

    def __init__(self, folder):
        self.folder, self.new = folder, itertools.count()

    def typed(self, words):
        command = " ".join(words[1:3])
        config = "first/first.toml" if words[1] == "slurm" or command == "governance review" else "my.toml"
        kept = list(itertools.takewhile(lambda word: word not in (">>", "|"), words[2:]))
        by_folder = command in IN_ITS_ROOT or words[1] == "trace-text"
        root = "runs/first" if words[1] == "slurm" else "runs/keyed" if "root.pem.pub" in words else "runs/my"
        stand_ins = WORDS | {
            "CONFIG": config, "my.toml": config, "RUN": config, "ROOT": root, "/shared/runs/my": root,
            "CHECKPOINT": f"{root}/checkpoint/*" if by_folder else "last", "PATH": "corpus",
            "ARTIFACT": f"{root}/redact/*", "DOCUMENT": "tales/a.jsonl#1", "news/2026-01.jsonl#1234": "tales/a.jsonl#1",
            "runs/a": root, "runs/b": "runs/keyed", "runs/mine": root, "runs/second": "runs/mine",
            "s3://bucket/runs/mine": "file://{here}/mirror", "URL": "file://{here}/mirror-of-commands",
            "A": root if words[1] == "report" else f"{root}/redact/*",
            "B": "runs/first" if words[1] == "report" else f"{root}/clean/*",
            "FOLDER": "runs" if command == "report index" else f"out/new-{next(self.new)}",
            "FILE": f"out/new-{next(self.new)}.json", "PREFIX": f"out/new-{next(self.new)}", "OWNER/NAME": "lab/tiny",
            "POLICY": "configs/policy.toml", "JOB": "train", "SHARD": f"{root}/encode/*/train/*.tokens",
            "SUITE.json": "out/*/documents.json", "KEY": "first/keys/ann.pem",
            "inspect-NAME/run.toml": "inspect-corpus/run.toml", "<folder>": f"{root}/checkpoint/*",
            "<folder>/model.sig": f"{root}/checkpoint/*/model.sig", "2027-01-31": datetime.date.today().isoformat(),
            "PROMPT": "The cat sat",
            "TEXT": "The cat sat" * (5 if words[1] == "trace-text" else 1), "KPIS": "kpis.toml",
            "OUTCOMES": "outcomes.csv",
            "<root>/<stage>/<key>": f"{root}/redact/*", "PORT": "0",
        }  # fmt: skip
        if command == "governance review":
            stand_ins["keys/ann.pem"] = "first/keys/ann.pem"
        if command == "slurm logs":
            stand_ins["N"] = "0"
        found = []
        for word in kept:
            word = stand_ins.get(word, re.sub(r"\$\w+/\$\w+", "0/1", word))
            word = (
                word.replace("<root>", root).replace("<key>", "*").replace("/KEY/", "/*/").replace("000000-news", "*")
            )
            word = re.sub(r"\$\w+", "2", word).replace("{here}", str(self.folder))
            found += glob(word, self.folder)[:1] or [word]
        return [*words[:2], *found]

    def run(self, words):
        """Run one command; return its exit code and what it printed."""
        typed = self.typed(words) if words[0] == "assay" or "<" in shlex.join(words) else words
        if words[0] == "assay":
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                try:
                    return main(typed[1:]), output.getvalue()
                except SystemExit as leaving:
                    return leaving.code, output.getvalue()
        if words[:2] == ["python", "-c"]:
            typed = [sys.executable, "-c", re.sub(r"'<root>(.*?)<key>(.*?)'", self._only, words[2])]
        elif words[0] == "model_signing":
            typed = [sys.executable, "-m", *typed]
        else:
            typed = ["bash", "-c", " ".join(words)]
        done = subprocess.run(typed, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def _only(self, found):
        return repr(glob(f"runs/my{found[1]}*{found[2]}", self.folder)[0])


def test_each_command_can_be_run_or_has_its_reason(tmp_path):
    reader, used, unknown = Reader(tmp_path), set(), []
    for page in READING:
        for line, words in steps(page):
            if reason(words):
                used |= {pattern for pattern in LEFT_OUT if re.match(pattern, shlex.join(words))}
                continue
            left = [word for word in reader.typed(words) if re.search(r"\b[A-Z]{3,}\b|<\w+>", word)]
            if words[0] not in ("assay", "python", "head", "model_signing") or (words[0] == "assay" and left):
                unknown.append(f"{page.name}, line {line}: {shlex.join(words)}: {left}")
    assert unknown == []
    assert used == LEFT_OUT.keys()
    tests = re.findall(r"(?:tests|benchmarks)/[\w/]+\.py", " ".join(LEFT_OUT.values()))
    assert [name for name in tests if not (ROOT / name).exists()] == []


@pytest.fixture
def checkout(tmp_path, monkeypatch, hub):
    """A checkout as the pages assume it: `.git`, `configs/`, and documents in `corpus/` with many different words."""
    (tmp_path / ".git").mkdir()
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    for name in ("corpus", "tales", "out"):
        (tmp_path / name).mkdir()
    write_tales(tmp_path / "corpus" / "a.jsonl", range(150))
    write_tales(tmp_path / "tales" / "a.jsonl", range(120))
    chance = random.Random(1)
    letters = ("bdfgklmnprstvz", "aeiou") * 3
    names = ["".join(map(chance.choice, letters)) for _ in range(9000)]
    with (tmp_path / "corpus" / "b.jsonl").open("w") as file:
        for first in range(0, len(names), 45):
            text = "".join(
                f"{name} {chance.choice(('the', 'of', 'and', 'with'))} " for name in names[first : first + 45]
            )
            file.write(json.dumps({"text": f"The {text}end."}) + "\n")
    kinds = (("good", ("river", "garden", "music")), ("bad", ("spam", "offer", "casino")))
    labelled = [(" ".join(chance.choices(words, k=20)), label) for label, words in kinds for _ in range(40)]
    lines = (json.dumps({"text": text, "label": label}) + "\n" for text, label in labelled)
    (tmp_path / "labelled.jsonl").write_text("".join(lines))
    for name, text in OWN.items():
        (tmp_path / name).write_text(text)
    for name, place in (("PYTHONPATH", ROOT), ("XDG_CONFIG_HOME", tmp_path / "home"), ("HF_TOKEN", TOKEN)):
        monkeypatch.setenv(name, str(place))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_as_the_page_says(page, line, block, folder):
    """Save a TOML block under the name that the page gives it, with few steps."""
    steps = 2 if page.name == "README.md" else 6
    before = " ".join(page.read_text(encoding="utf-8").splitlines()[max(0, line - 4) : line])
    if named := re.search(r"[Ss]ave this as `([^`]+)`", before):
        (folder / named[1]).parent.mkdir(exist_ok=True)
        block = re.sub(r"^(warmup|decay)_steps = \d+$", r"\1_steps = 1", block, flags=re.MULTILINE)
        (folder / named[1]).write_text(re.sub(r"^steps = \d+$", f"steps = {steps}", block, flags=re.MULTILINE))


def state_the_licence(file):
    """Edit the proposed file as the README says, with few steps."""
    text = file.read_text().replace('licence = "NOASSERTION"', 'licence = "CC0-1.0"')
    text = re.sub(r"^(warmup|decay)_steps = \d+$", r"\1_steps = 1", text, flags=re.MULTILINE)
    file.write_text(re.sub(r"^steps = \d+$", "steps = 2", text, flags=re.MULTILINE))


def name_ann(folder):
    """Edit the files of the tutorial as steps 1 and 2 of docs/howto/policy.md say."""
    run, policy = folder / "first" / "first.toml", folder / "first" / "policy.toml"
    run.write_text(run.read_text() + '\n[governance]\npolicy = "strict.toml"\n')
    text = policy.read_text().replace('data = ["data-lead"]', 'data = ["ann"]')
    policy.write_text(text + '\n[people]\nann = "keys/ann.pem.pub"\n')


@pytest.mark.slow
def test_every_page_runs_in_its_order(checkout, monkeypatch):
    """A command between backticks runs once, where it occurs first."""
    reader, ran = Reader(checkout), set()
    monkeypatch.setattr("sys.stdin", io.StringIO("skip\n" * 50))
    for page in READING:
        toml = [(line, "save", block) for line, block in blocks(page, "toml")]
        between = {(line, tuple(words)) for line, words in inline(page)}
        typed = [(line, "run", words) for line, words in steps(page)]
        for line, kind, words in sorted([*toml, *typed], key=lambda step: step[0]):
            if kind == "save":
                save_as_the_page_says(page, line, words, checkout)
                continue
            if reason(words) or (tuple(words) in ran and (line, tuple(words)) in between):
                continue
            if page.name == "policy.md" and page.parent.name == "howto" and "check" in words:
                name_ann(checkout)
            if words == ["assay", "run", "inspect-corpus/run.toml"]:
                state_the_licence(checkout / "inspect-corpus" / "run.toml")
            if not (checkout / "runs" / "my").exists() and {"CONFIG", "ROOT"} & {*words}:
                assert main(["run", "my.toml"]) == main(["data", "prepare", "keyed.toml"]) == 0
            code, printed = reader.run(words)
            place = f"{page.name}, line {line}: {shlex.join(words)}"
            assert code == EXIT_CODES.get(shlex.join(words), 0), f"{place}\n{printed}"
            ran.add(tuple(words))

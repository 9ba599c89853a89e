"""Likelihood tasks, from the user's own files.

A question is a context, some choices, and the index of the right one; the model's answer is the likeliest choice after
the context. Records are JSON Lines or Parquet, with the fields as published or in one plain form for all tasks:

    {"question": "...", "context": "", "choices": ["...", "..."], "answer": "the right one, or its place from 0"}

    format          as published                                           as the model sees it
    pairs, blimp    sentence_good, sentence_bad, UID (plain: good, bad,    a line break | the sentence
                    paradigm) (arXiv:1912.00582)
    choices         the plain form                                         context question | " " choice
    hellaswag       ctx_a, ctx_b (or ctx), activity_label, endings,        label: context | " " ending, without [...]
                    label (arXiv:1905.07830)
    arc             question, choices, answerKey (arXiv:1803.05457)        Question: ... Answer: | " " choice
    piqa            goal, sol1, sol2, label (arXiv:1911.11641)             Question: ... Answer: | " " solution
    openbookqa      question_stem, choices, answerKey (arXiv:1809.02789)   the stem | " " choice
    commonsenseqa   question, choices, answerKey (arXiv:1811.00937)        Question: ... Answer: | " " choice
    boolq           passage, question, answer (arXiv:1905.10044)           passage, Question: ...? Answer: | no, yes
    mmlu            question, choices, answer, subject (arXiv:2009.03300)  question, A. ... B. ..., Answer: | " A", " B"
    truthfulqa_mc1  question, mc1_targets (arXiv:2109.07958)               Q: ... A: | " " choice

Prompts are those of lm-evaluation-harness without examples, with three differences: that harness labels the choices of
commonsenseqa with letters, puts a primer before truthfulqa, and starts an empty context with the end-of-document token,
which Assay's models never see at a start (they see a line break, or the token that begins documents:
`loglikelihood.LEAD`).

In a custom task a function yields the records, in place of a file:

    [[evaluation.tasks]]
    name = "arithmetic"
    format = "choices"
    task = "mylab.tasks:arithmetic"

The function takes nothing, and yields mappings as a line of a file has them. It must be deterministic: it
is called twice in a process, and refused where the records differ, because every rank must score the same questions.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.config import canonical_json
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes, sha256_file
from governance.log import get_logger
from governance.own_code import OwnCode, find_code, first_line, load
from governance.processes import time_limit
from governance.verified_files import hashed
from pretrain.config.training import EvaluationConfig, TaskConfig
from pretrain.evaluation.loglikelihood import LEAD

MAX_FAULTS = 0.01  # share of the records: published files have a few broken ones; in a wrong format all are
_FILES = re.compile(r".*\.(jsonl?(\.gz)?|parquet)")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """Context, choices and right answer."""

    context: str
    choices: tuple[str, ...]
    """Possible continuations of the context, the blank between them included."""
    answer: int
    """Index of the right choice."""
    subtask: str = ""
    """Part of the set that it belongs to; empty: the set has no parts."""


@dataclass(frozen=True)
class Task:
    """Named set of questions."""

    name: str
    sha256: str
    """Digest of its file; for a folder, of its files' digests; of the records that a custom function yields."""
    questions: tuple[Question, ...]
    left_out: int = 0
    """Records without a valid question, for example with an answer that is not a choice."""


def pin(config: EvaluationConfig, folder: Path) -> EvaluationConfig:
    """Copy of the section with the digests of its files and functions.

    Raises:
        MissingInput: a file or module is missing.
        ConfigError: a file, a source or its records have another digest than the section states, or a custom function
            fails.
    """
    pinned = []
    for task in config.tasks:
        if task.task:
            own = own_records(task, folder)
            digests, origin = {"sha256": own.sha256, "code_sha256": own.code_sha256}, task.task
        else:
            digests, origin = {"sha256": _joined([*map(sha256_file, _paths(task, folder))])}, str(folder / task.path)
        _refuse_other(task, digests, origin)
        pinned.append(task.model_copy(update=digests))
    return config.model_copy(update={"tasks": tuple(pinned)})


def _refuse_other(task: TaskConfig, digests: Mapping[str, str], origin: str) -> None:
    """Raise unless a task's questions have the digests that it states."""
    for field, found in digests.items():
        if getattr(task, field) not in ("", found):
            raise ConfigError(
                f"evaluation.tasks, {task.name}: {origin} has {field} {found}, the configuration states "
                f"{getattr(task, field)}. Give the intended {'function' if task.task else 'file'}, or the new digest."
            )


def open_tasks(config: EvaluationConfig, folder: Path) -> tuple[Task, ...]:
    """Read every task; `folder` is where relative paths start.

    Raises:
        MissingInput: a file or module is missing.
        ConfigError: more than 1 % of the records of files, or any record of a custom function, have another format; the
            first one is named, with its field. A custom function fails. A digest is not as the section states.
    """
    return tuple(_open(task, folder, config.seed) for task in config.tasks)


def _open(task: TaskConfig, folder: Path, seed: int) -> Task:
    if task.task:
        own = own_records(task, folder)
        found, digest, most, origin = list(_questions(task, task.task, own.records)), own.sha256, 0.0, task.task
        _refuse_other(task, {"sha256": digest, "code_sha256": own.code_sha256}, origin)
    else:
        paths, most, origin = _paths(task, folder), MAX_FAULTS, str(folder / task.path)
        with hashed(paths) as digests:
            found = [one for path in paths for one in _questions(task, str(path), _records(path))]
        digest = _joined(digests)
        _refuse_other(task, {"sha256": digest}, origin)
    questions = [one for one in found if isinstance(one, Question)]
    faults = [one for one in found if isinstance(one, str)]
    if not questions and not faults:
        raise ConfigError(f"evaluation.tasks, {task.name}: {origin} holds no question")
    if len(faults) > most * (len(questions) + len(faults)):
        subject = "function" if task.task else "file"
        raise ConfigError(f"evaluation.tasks, {task.name}: {faults[0]}. Correct the format or the {subject}.")
    for fault in faults:
        get_logger(__name__).warning("evaluation.tasks, %s: left out %s", task.name, fault)
    return Task(task.name, digest, tuple(choose(questions, task.limit, seed)), len(faults))


def choose(questions: Sequence[Question], limit: int, seed: int) -> list[Question]:
    """At most `limit` questions (0: all), in their order.

    The seed and the positions decide the choice.
    """
    if not 0 < limit < len(questions):
        return list(questions)
    drawn = sorted(range(len(questions)), key=lambda place: sha256_bytes(f"{seed}/{place}".encode()))
    return [questions[place] for place in sorted(drawn[:limit])]


def _paths(task: TaskConfig, folder: Path) -> list[Path]:
    if not task.path:
        raise ConfigError(
            f"evaluation.tasks, {task.name}: path is missing; give the file with its questions, or a task"
        )
    path = folder / task.path
    paths = sorted(p for p in path.iterdir() if _FILES.fullmatch(p.name)) if path.is_dir() else [path]
    if not paths or not path.exists():
        raise MissingInput(
            f"evaluation.tasks, {task.name}: file {path} does not exist. Put it there, or correct the path."
        )
    if odd := [p for p in paths if not _FILES.fullmatch(p.name)]:
        raise ConfigError(
            f"evaluation.tasks, {task.name}: {odd[0]} is neither .jsonl, .jsonl.gz, .json nor .parquet; convert it"
        )
    return paths


def _joined(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else sha256_bytes("\n".join(digests).encode())


def _questions(task: TaskConfig, place: str, records: Iterable[Record]) -> Iterator[Question | str]:
    """Question of each record, or its error text."""
    reached = 1
    try:
        for number, record in enumerate(records, 1):
            try:
                yield _question(task, record)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                fault = f"no field {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
                yield f"{place}, record {number}: does not have the format {task.format!r} ({fault})"
            reached = number + 1
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(
            f"evaluation.tasks, {task.name}: {place}, record {reached}: cannot be read ({error}). Give the whole file."
        ) from error


def _question(task: TaskConfig, record: Record) -> Question:
    question = _READERS[task.format](record)
    if not 0 <= question.answer < len(question.choices) or len(question.choices) < 2:
        raise ValueError(f"answer {question.answer} is not one of the {len(question.choices)} choices")
    if any(not choice.strip() for choice in question.choices):
        raise ValueError("a choice is empty")
    return question


def _records(path: Path) -> Iterator[Record]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        if path.name.removesuffix(".gz").endswith(".json"):
            whole = json.load(file)
            yield from whole if isinstance(whole, list) else [whole]
            return
        yield from (json.loads(line) for line in file if line.strip())


def _first(record: Record, *names: str) -> Any:
    """First of these fields that is present and not null."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise KeyError(" or ".join(names))


def _options(record: Record) -> tuple[list[str], int]:
    """Choices and right answer from any published form."""
    held = record.get("choices")
    if held is None and isinstance(record["question"], Mapping):
        held = record["question"]["choices"]
    labels: list[str] = []
    if isinstance(held, Mapping):
        held, labels = held["text"], [str(label) for label in held["label"]]
    elif held and isinstance(held[0], Mapping):
        held, labels = [option["text"] for option in held], [str(option["label"]) for option in held]
    choices = [choice.strip() for choice in _first({"choices": held}, "choices")]
    answer = _first(record, "answerKey", "answer")
    if labels:
        return choices, labels.index(str(answer).strip())
    return choices, answer if isinstance(answer, int) else _place(choices, answer)


def _place(choices: Sequence[str], answer: str) -> int:
    """Index of the answer, exact or by equal letters."""
    if answer.strip() in choices:
        return choices.index(answer.strip())
    letters = [re.sub(r"\W", "", text.casefold()) for text in (*choices, answer)]
    if letters[:-1].count(letters[-1]) != 1:
        raise ValueError(f"the answer {answer!r} is not one of the choices")
    return letters.index(letters[-1])


def _stem(record: Record) -> str:
    question = _first(record, "question_stem", "question")
    return str(question["stem"] if isinstance(question, Mapping) else question)


def _before(record: Record) -> str:
    """Context and question of the plain form."""
    context = record.get("context") or ""
    return f"{context}\n{_stem(record)}" if context else _stem(record)


def _blanks(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {choice.strip()}" for choice in choices)


def _pairs(record: Record) -> Question:
    good, bad = _first(record, "sentence_good", "good"), _first(record, "sentence_bad", "bad")
    return Question(LEAD, (str(good), str(bad)), 0, str(record.get("UID") or record.get("paradigm") or ""))


def _choices(record: Record) -> Question:
    choices, answer = _options(record)
    return Question(_before(record).rstrip(), _blanks(choices), answer, str(record.get("subtask") or ""))


def _question_answer(record: Record) -> Question:
    choices, answer = _options(record)
    return Question(f"Question: {_before(record)}\nAnswer:", _blanks(choices), answer)


def _hellaswag(record: Record) -> Question:
    if "endings" in record:
        halves = record.get("ctx_a"), record.get("ctx_b")
        begun = f"{halves[0]} {str(halves[1]).capitalize()}" if None not in halves else record["ctx"]
        context, choices = f"{record['activity_label']}: {begun}", record["endings"]
        answer = int(record["label"])
    else:
        context, (choices, answer) = _before(record), _options(record)
    return Question(_unbracketed(context).rstrip(), _blanks([_unbracketed(choice) for choice in choices]), answer)


def _unbracketed(text: str) -> str:
    """Text without WikiHow's marks: "[title]" ends a sentence, others are dropped."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(record: Record) -> Question:
    if "goal" not in record:
        return _question_answer(record)
    choices = _blanks([record["sol1"], record["sol2"]])
    return Question(f"Question: {record['goal']}\nAnswer:", choices, int(_first(record, "label")))


def _boolq(record: Record) -> Question:
    answer = _first(record, "answer", "label")
    right = {"true": 1, "false": 0, "yes": 1, "no": 0, "1": 1, "0": 0}[str(answer).casefold()]
    question = str(record["question"]).strip().removesuffix("?")
    context = f"{_first(record, 'passage', 'context')}\nQuestion: {question}?\nAnswer:"
    return Question(context, (" no", " yes"), right)


def _mmlu(record: Record) -> Question:
    choices, answer = _options(record)
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    context = f"{_before(record).strip()}\n{listed}\nAnswer:"
    return Question(context, _blanks(_LETTERS[: len(choices)]), answer, str(record.get("subject") or ""))


def _truthfulqa(record: Record) -> Question:
    if "mc1_targets" not in record:
        choices, answer = _options(record)
    else:
        targets = record["mc1_targets"]
        if "labels" in targets:
            choices, answer = list(targets["choices"]), list(targets["labels"]).index(1)
        else:
            choices, answer = list(targets), list(targets.values()).index(1)
    return Question(f"Q: {_stem(record)}\nA:", _blanks(choices), answer)


_READERS: dict[str, Callable[[Record], Question]] = {
    "choices": _choices,
    "pairs": _pairs,
    "arc": _question_answer,
    "blimp": _pairs,
    "boolq": _boolq,
    "commonsenseqa": _question_answer,
    "hellaswag": _hellaswag,
    "mmlu": _mmlu,
    "openbookqa": _choices,
    "piqa": _piqa,
    "truthfulqa_mc1": _truthfulqa,
}


Record = Mapping[str, Any]


@dataclass(frozen=True)
class OwnRecords:
    """Records of a function, with the digests that enter the key."""

    records: tuple[Record, ...]
    sha256: str
    """SHA-256 of the records, one JSON object per line."""
    code_sha256: str


def own_records(task: TaskConfig, folder: Path) -> OwnRecords:
    """Call a task's function, once per process and source.

    Raises:
        MissingInput: there is no such module.
        ConfigError: the function cannot be imported, raises, takes too long, yields nothing or no JSON objects,
            or yields other records when it is called again.
    """
    where = f"evaluation.tasks, {task.name}"
    code = find_code(task.task, folder, f"{where}: task")
    return _called(code, code.digest, where, task.seconds)


@functools.lru_cache(maxsize=64)
def _called(code: OwnCode, digest: str, where: str, seconds: float) -> OwnRecords:
    first, again = (_lines(code, digest, where, seconds) for _ in range(2))
    if first != again:
        raise ConfigError(
            f"{where} ({code.dotted}): yields other records when it is called again. Make it deterministic, for "
            "example with random.Random(0)."
        )
    if not first:
        raise ConfigError(f"{where} ({code.dotted}): yields no record. Correct the function.")
    return OwnRecords(tuple(json.loads(line) for line in first), sha256_bytes(b"\n".join(first)), digest)


def _lines(code: OwnCode, digest: str, where: str, seconds: float) -> list[bytes]:
    lines: list[bytes] = []
    try:
        function = load(code, digest)
        with time_limit(seconds):
            for record in function():
                if not isinstance(record, Mapping):
                    raise TypeError(f"it is {type(record).__name__}, not a mapping")
                lines.append(canonical_json(record))
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # own code may raise anything
        raise ConfigError(
            f"{where} ({code.dotted}), record {len(lines) + 1}: {first_line(error)}. No step was trained. Correct the "
            "function."
        ) from error
    return lines

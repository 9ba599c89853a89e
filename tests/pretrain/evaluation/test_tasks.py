"""Published formats become questions; errors in a file are reported before anything is computed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from governance.errors import AlteredFile, ConfigError, MissingInput
from pretrain.config.training import EvaluationConfig, TaskConfig
from pretrain.evaluation.loglikelihood import LEAD
from pretrain.evaluation.tasks import open_tasks, pin
from tests.given_data import given_data


def write(path: Path, records: list[dict]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def opened(path: Path, kind: str, **settings):
    seed = settings.pop("seed", 0)
    task = TaskConfig(name="mine", format=kind, path=path.name, **settings)
    [read] = open_tasks(EvaluationConfig(tasks=(task,), seed=seed), path.parent)
    return read.questions


PUBLISHED = {
    "blimp": (
        {"sentence_good": "Birds sing.", "sentence_bad": "Birds sings.", "UID": "agreement"},
        (LEAD, ("Birds sing.", "Birds sings."), 0, "agreement"),
    ),
    "pairs": (
        {"good": "Birds sing.", "bad": "Birds sings."}, (LEAD, ("Birds sing.", "Birds sings."), 0, "")
    ),
    "choices": (
        {"context": "It rains.", "question": "The street is", "choices": ["dry.", "wet."], "answer": "wet."},
        ("It rains.\nThe street is", (" dry.", " wet."), 1, ""),
    ),
    "hellaswag": (
        {"ctx_a": "A cook peels an onion.", "ctx_b": "then he", "activity_label": "Cooking [x] soup", "label": "1",
         "endings": ["flies off. [title] Away [b]", "cuts it."]},
        ("Cooking soup: A cook peels an onion. Then he", (" flies off.. Away", " cuts it."), 1, ""),
    ),
    "arc": (
        {"question": "What melts?", "choices": {"text": ["ice", "air", "light"], "label": ["1", "2", "3"]},
         "answerKey": "1"},
        ("Question: What melts?\nAnswer:", (" ice", " air", " light"), 0, ""),
    ),
    "piqa": (
        {"goal": "Open a jar.", "sol1": "Shout at it.", "sol2": "Turn the lid.", "label": 1},
        ("Question: Open a jar.\nAnswer:", (" Shout at it.", " Turn the lid."), 1, ""),
    ),
    "openbookqa": (
        {"question_stem": "A cold lake", "choices": {"text": ["boils", "freezes"], "label": ["A", "B"]},
         "answerKey": "B"},
        ("A cold lake", (" boils", " freezes"), 1, ""),
    ),
    "commonsenseqa": (
        {"question": {"stem": "Where do you sleep?",
                      "choices": [{"label": "A", "text": "bed"}, {"label": "B", "text": "oven"}]},
         "answerKey": "A"},
        ("Question: Where do you sleep?\nAnswer:", (" bed", " oven"), 0, ""),
    ),
    "boolq": (
        {"passage": "Ice is frozen water.", "question": "is ice water", "answer": True},
        ("Ice is frozen water.\nQuestion: is ice water?\nAnswer:", (" no", " yes"), 1, ""),
    ),
    "mmlu": (
        {"question": " 1 + 1? ", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": "sums"},
        ("1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", (" A", " B", " C", " D"), 1, "sums"),
    ),
    "truthfulqa_mc1": (
        {"question": "Is the moon cheese?", "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]}},
        ("Q: Is the moon cheese?\nA:", (" No.", " Yes."), 0, ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_a_published_record_becomes_a_question(tmp_path, kind):
    record, (context, choices, answer, subtask) = PUBLISHED[kind]
    [question] = opened(write(tmp_path / "set.jsonl", [record]), kind)
    assert (question.context, question.choices, question.answer, question.subtask) == (
        context,
        choices,
        answer,
        subtask,
    )


@pytest.mark.parametrize("kind", ["arc", "commonsenseqa", "openbookqa", "piqa", "hellaswag", "mmlu", "truthfulqa_mc1"])
def test_the_plain_form_serves_every_format(tmp_path, kind):
    record = {"question": "It was a", "context": "", "choices": ["day", "b"], "answer": "b"}
    place = {**record, "answer": 1}
    first, second = opened(write(tmp_path / "set.jsonl.gz", [record, place]), kind)
    assert first == second
    assert first.answer == 1


def test_parquet_and_folders_are_read_as_lines_are(tmp_path):
    records = [PUBLISHED["arc"][0]] * 3
    (tmp_path / "folder").mkdir()
    pq.write_table(pa.Table.from_pylist(records[:2]), tmp_path / "folder" / "a.parquet")
    write(tmp_path / "folder" / "b.jsonl", records[2:])
    assert opened(tmp_path / "folder", "arc") == opened(write(tmp_path / "set.jsonl", records), "arc")


def test_a_limit_draws_the_same_questions_each_time(tmp_path):
    path = write(tmp_path / "set.jsonl", [{"good": f"Good {n}.", "bad": "x"} for n in range(50)])
    whole, part = opened(path, "pairs"), opened(path, "pairs", limit=20)
    assert len(whole) == 50
    assert [q for q in whole if q in part] == list(part)
    assert len(part) == 20
    assert opened(path, "pairs", limit=20) == part
    assert opened(path, "pairs", limit=20, seed=1) != part
    assert opened(path, "pairs", limit=99) == whole


def test_a_digest_is_pinned_and_its_path_is_not(tmp_path):
    path = write(tmp_path / "set.jsonl", [PUBLISHED["piqa"][0]])
    (tmp_path / "moved").mkdir()
    other = write(tmp_path / "moved" / "set.jsonl", [PUBLISHED["piqa"][0]])
    config = EvaluationConfig(tasks=(TaskConfig(name="a", format="piqa", path=path.name),))
    pinned, moved = pin(config, tmp_path), pin(config, other.parent)
    assert pinned == moved
    assert len(pinned.tasks[0].sha256) == 64
    assert "path" not in pinned.model_dump(mode="json")["tasks"][0]
    path.write_text(path.read_text().replace("lid", "top"))
    with pytest.raises(ConfigError, match=r"has sha256 .* the configuration states"):
        pin(pinned, tmp_path)
    with pytest.raises(ConfigError, match=r"has sha256 .* the configuration states"):
        open_tasks(pinned, tmp_path)


@pytest.mark.parametrize(
    ("record", "kind", "messages"),
    [
        ({"question": "q", "choices": ["a", "b"], "answer": None}, "hellaswag", "no field 'answerKey or answer'"),
        ({"goal": "g", "sol1": "a", "sol2": "b", "label": -1}, "piqa", "answer -1 is not one of the 2 choices"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "arc", "not one of the 1 choices"),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "arc", "a choice is empty"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "arc", "the answer 'c' is not one of the choices"),
        ({"passage": "p", "question": "q", "answer": "maybe"}, "boolq", "no field 'maybe'"),
        ({"good": "x"}, "blimp", "no field 'sentence_bad or bad'"),
        ([], "arc", "does not have the format"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, record, kind, messages):
    path = write(tmp_path / "set.jsonl", [record])
    with pytest.raises(ConfigError, match="record 1") as error:
        opened(path, kind)
    assert messages in str(error.value)
    assert str(path) in str(error.value)


def test_questions_that_are_exchanged_while_they_are_read_have_no_digest(tmp_path, monkeypatch):
    path, good = tmp_path / "set.jsonl", PUBLISHED["piqa"][0]
    write(path, [good])

    def read_and_exchange(where):
        yield good
        write(path, [good, good])

    monkeypatch.setattr("pretrain.evaluation.tasks._records", read_and_exchange)
    with pytest.raises(AlteredFile, match="was changed while it was read"):
        open_tasks(EvaluationConfig(tasks=(TaskConfig(name="mine", format="piqa", path="set.jsonl"),)), tmp_path)


def test_a_broken_record_in_a_hundred_is_skipped_and_counted(tmp_path, caplog):
    good, bad = PUBLISHED["piqa"][0], {"goal": "g", "sol1": "a", "sol2": "b", "label": 7}
    task = TaskConfig(name="mine", format="piqa", path="set.jsonl")
    write(tmp_path / "set.jsonl", [*[good] * 60, bad, *[good] * 39])
    [read] = open_tasks(EvaluationConfig(tasks=(task,)), tmp_path)
    assert (len(read.questions), read.left_out) == (99, 1)
    assert "record 61" in caplog.text
    write(tmp_path / "set.jsonl", [good, bad] * 50)
    with pytest.raises(ConfigError, match="record 2"):
        open_tasks(EvaluationConfig(tasks=(task,)), tmp_path)


def test_wrong_files_are_named(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"good": "a", "bad": "b"}\n{"good": \n')
    with pytest.raises(ConfigError, match="record 2"):
        opened(tmp_path / "set.jsonl", "blimp")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds no question"):
        opened(tmp_path / "empty.jsonl", "blimp")
    (tmp_path / "set.txt").write_text("")
    with pytest.raises(ConfigError, match="convert it"):
        opened(tmp_path / "set.txt", "blimp")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    with pytest.raises(ConfigError, match=r"torn\.jsonl\.gz"):
        opened(tmp_path / "torn.jsonl.gz", "blimp")
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"x\.parquet"):
        opened(tmp_path / "x.parquet", "blimp")
    with pytest.raises(MissingInput, match=r"absent\.jsonl"):
        opened(tmp_path / "absent.jsonl", "blimp")
    with pytest.raises(ConfigError, match="path is missing"):
        open_tasks(EvaluationConfig(tasks=(TaskConfig(name="a", format="arc"),)), tmp_path)
    with pytest.raises(ValueError, match="twice"):
        EvaluationConfig(tasks=(TaskConfig(name="a", format="arc"),) * 2)


@pytest.mark.parametrize(
    ("file", "kind", "count", "choices"),
    [
        ("arc-challenge", "arc", 1165, 4),
        ("arc-easy", "arc", 2365, 4),
        ("blimp", "blimp", 6700, 2),
        ("boolq", "boolq", 1500, 2),
        ("commonsenseqa", "commonsenseqa", 1221, 5),
        ("mmlu", "mmlu", 2847, 4),
        ("openbookqa", "openbookqa", 498, 4),
        ("piqa", "piqa", 1324, 2),
    ],
)
def test_real_sets_are_read(file, kind, count, choices):
    path = given_data(f"evals/{file}.jsonl.gz")
    if not path.exists():
        pytest.skip(f"no {path}")
    questions = opened(path, kind)
    assert len(questions) == count
    usual = [question for question in questions if len(question.choices) == choices]
    assert len(usual) >= len(questions) - 3  # three of commonsenseqa's have been split otherwise
    assert kind == "blimp" or {question.answer for question in usual} == set(range(choices))


def test_a_set_without_answers_is_refused():
    path = given_data("evals/hellaswag.jsonl.gz")
    if not path.exists():
        pytest.skip(f"no {path}")
    with pytest.raises(ConfigError, match="answerKey or answer"):
        opened(path, "hellaswag")

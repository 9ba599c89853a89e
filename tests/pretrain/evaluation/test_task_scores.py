"""Scores and their errors are those of plain arithmetic; the loop records them; ranks share the work."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
import torch

from governance.errors import ConfigError
from governance.manifest import read_manifest
from pretrain.config.training import EvaluationConfig, TaskConfig
from pretrain.evaluation.loglikelihood import Passes, Scored
from pretrain.evaluation.scores import encode_tasks, evaluate_tasks, figures, mean_error
from pretrain.evaluation.tasks import Question, Task, open_tasks, pin
from pretrain.evaluation.validation import load_decoder, nats_with
from tests.pretrain.rank_runs import run_ranks


def encode(text: str) -> np.ndarray:
    return np.array([1 + ord(letter) % 150 for letter in text], np.uint16)


QUESTIONS = (
    Question("a b", (" cc", " ddddd"), 0, "one"),
    Question("a", (" f", " gg", " hhhh"), 2, "two"),
    Question("\n", ("i jk", "jk i"), 1, "two"),
)


def test_figures_are_plain_arithmetic():
    nats = [-2.0, -4.0, -1.0, -3.0, -3.5, -5.0, -5.0]
    row = figures(QUESTIONS, [Scored(value, 1) for value in nats])
    # 1: -2 is the likelier; per letter -1.0 against -0.8. 2: the first is. 3: both are equal, each counts half.
    assert row["acc"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert row["acc_norm"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert row["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    bits = [2 / math.log(2) / 2, 3.5 / math.log(2) / 4, 5 / math.log(2) / 4]
    assert row["bits_per_byte"] == pytest.approx(sum(bits) / 3)
    assert row["bits_per_byte_stderr"] == pytest.approx(statistics.stdev(bits) / math.sqrt(3))
    assert row["subtasks"]["one"] == {"acc": 1.0, "acc_stderr": None, "questions": 1}
    assert row["subtasks"]["two"]["acc"] == pytest.approx(0.25)
    assert row["acc_by_subtask"] == pytest.approx((1 + 0.25) / 2)
    assert row["acc_by_subtask_stderr"] is None


def test_the_error_of_a_share_is_the_binomial_one():
    values = [1.0] * 30 + [0.0] * 70
    mean, error = mean_error(values)
    assert error == pytest.approx(math.sqrt(mean * (1 - mean) / 99))
    assert mean_error([1.0]) == (1.0, None)


@pytest.fixture(scope="module")
def nats_of(finished):
    root, run = finished
    return nats_with(load_decoder(read_manifest(root / run.stats["checkpoint"]["path"]), root))


def test_ranks_share_the_questions_and_pass_as_often(nats_of):
    questions = tuple(
        Question("\n", (f"the number {n} and so on" * (1 + n % 9), f"number the {n}"), 0) for n in range(40)
    )
    suite = encode_tasks([Task("numbers", "", questions)], encode, 64)
    [alone] = evaluate_tasks(suite, nats_of)
    shapes: list[list[tuple[int, ...]]] = [[], [], []]
    parts: list[list[float]] = []

    def counted(rank):
        def of(batch):
            shapes[rank].append(tuple(batch.tokens.shape))
            return nats_of(batch)

        return of

    def keep(values):
        parts.append(values)
        return values

    for rank in range(3):
        evaluate_tasks(suite, counted(rank), Passes(256, rank, 3, keep))
    assert len({len(made) for made in shapes}) == 1
    assert len(shapes[0]) > 1
    nonzero = np.array(parts) != 0
    assert (nonzero.sum(0) == 1).all()  # each choice on exactly one rank
    summed = np.array(parts).sum(0).tolist()
    [shared] = evaluate_tasks(suite, nats_of, Passes(256, 0, 1, lambda values: summed))
    assert shared["acc"] == alone["acc"]
    assert shared["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-6)


def test_a_model_that_knows_nothing_scores_chance(finished):
    root, run = finished
    model = load_decoder(read_manifest(root / run.stats["checkpoint"]["path"]), root)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    questions = tuple(Question("\n", tuple(f"same {n} {m}" for m in range(4)), n % 4) for n in range(20))
    [row] = evaluate_tasks(encode_tasks([Task("t", "", questions)], encode, 64), nats_with(model))
    assert row["acc"] == row["chance"] == 0.25
    assert row["acc_stderr"] == 0.0


def _tasks(folder, **settings):
    lines = [{"good": f"ab{n}cd ef", "bad": f"ef cd{n}ab", "paradigm": f"p{n % 2}"} for n in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = TaskConfig(name="pairs", format="blimp", path="pairs.jsonl")
    return EvaluationConfig(tasks=(task,), **settings)


def test_the_loop_evaluates_and_keeps_what_it_found(tmp_path, run_training):
    config = pin(_tasks(tmp_path, every_steps=4), tmp_path)
    run = run_training(
        tmp_path, evaluation=config, suite=lambda: encode_tasks(open_tasks(config, tmp_path), encode, 32)
    )
    held = json.loads((tmp_path / run.folder / "losses.json").read_bytes())["tasks"]
    assert [row["step"] for row in held] == [4, 8, 10]
    assert run.stats["tasks"] == {"pairs": held[-1]}
    lines = [json.loads(line) for line in (tmp_path / run.folder / "metrics.jsonl").read_text().splitlines()]
    messages = [
        {k: v for k, v in line.items() if k not in ("attempt", "event")} for line in lines if line["event"] == "task"
    ]
    assert messages == held
    # The figures of the last step in the loop are those of its checkpoint.
    last = read_manifest(tmp_path / run.stats["checkpoint"]["path"])
    suite = encode_tasks(open_tasks(config, tmp_path), encode, 32)
    [again] = evaluate_tasks(suite, nats_with(load_decoder(last, tmp_path)))
    assert again["acc"] == held[-1]["acc"]
    assert again["bits_per_byte"] == pytest.approx(held[-1]["bits_per_byte"], rel=1e-6)


def test_other_questions_are_another_run_and_wrong_ones_start_none(tmp_path, run_training):
    config = _tasks(tmp_path)
    first = pin(config, tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"good": "a b", "bad": "b a"}\n')
    assert pin(config, tmp_path) != first
    (tmp_path / "pairs.jsonl").write_text('{"good": "a b"}\n')
    with pytest.raises(ConfigError, match="sentence_bad"):
        run_training(
            tmp_path, evaluation=pin(config, tmp_path),
            suite=lambda: encode_tasks(open_tasks(config, tmp_path), encode, 32),
        )  # fmt: skip
    assert not list(tmp_path.glob("train/*/metrics.jsonl"))
    with pytest.raises(TypeError, match="suite"):
        run_training(tmp_path, evaluation=first)


RANK = """
import sys
from pathlib import Path

from tests.pretrain.evaluation import test_task_scores as here
from tests.pretrain.rank_runs import load_conftest
folder = Path(sys.argv[1])
config = here.pin(here._tasks(folder), folder)
suite = lambda: here.encode_tasks(here.open_tasks(config, folder), here.encode, 32)
load_conftest()._run_training(folder / "root", zero_stage=3, micro_batch_size=1, evaluation=config, suite=suite)
"""


@pytest.mark.slow
def test_two_ranks_of_a_spread_model_answer_as_one_does(tmp_path, run_training):
    (tmp_path / "rank.py").write_text(RANK)
    words = [str(tmp_path / "rank.py"), str(tmp_path)]
    well, output = run_ranks(tmp_path / "logs", words, ranks=2)
    assert well, output[-3000:]
    [held] = (tmp_path / "root" / "train").glob("*/losses.json")
    [shared] = json.loads(held.read_bytes())["tasks"]
    config = pin(_tasks(tmp_path), tmp_path)
    alone = run_training(
        tmp_path / "alone", evaluation=config, suite=lambda: encode_tasks(open_tasks(config, tmp_path), encode, 32)
    ).stats["tasks"]["pairs"]
    assert shared["questions"] == alone["questions"] == 12
    assert shared["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-4)
    assert shared["acc"] == alone["acc"]

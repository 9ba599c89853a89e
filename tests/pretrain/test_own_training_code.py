"""Own code of the training: the page's examples, and every way in which tasks and callbacks can fail."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from governance.errors import ConfigError, MissingInput
from governance.files import read_lines
from pretrain.callbacks import open_callbacks, read_only
from pretrain.config.training import CallbackConfig, EvaluationConfig, TaskConfig
from pretrain.evaluation.scores import encode_tasks
from pretrain.evaluation.tasks import open_tasks, pin
from tests.pretrain.evaluation.test_task_scores import encode
from tests.pretrain.rank_runs import run_ranks

PAGE = (Path(__file__).parents[2] / "docs" / "own_code.md").read_text(encoding="utf-8")


def example(heading):
    """The module, its name and the settings that the page shows below a heading."""
    part = PAGE.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    [name] = re.findall(r"The file (mylab/\w+\.py)", part)
    [module], [settings] = (re.findall(rf"```{kind}\n(.*?)```", part, re.S) for kind in ("python", "toml"))
    return name, module, tomllib.loads(settings)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of a run's file, with a package of one's own; it is the working directory too."""
    (tmp_path / "mylab").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(project, heading):
    name, module, settings = example(heading)
    (project / name).write_text(module)
    return settings


def arithmetic(**changes):
    task = {"name": "arithmetic", "format": "choices", "task": "mylab.tasks:arithmetic", **changes}
    return EvaluationConfig(tasks=(TaskConfig(**task),))


def trained(run_training, project, config, root="root", **settings):
    pinned = pin(config, project)
    suite = lambda: encode_tasks(open_tasks(pinned, project), encode, 32)  # noqa: E731
    return run_training(project / root, evaluation=pinned, suite=suite, folder=project, **settings)


def test_the_task_of_the_page_is_scored_as_a_file_of_its_records_is(project, run_training):
    shown_config = EvaluationConfig.model_validate(shown(project, "An evaluation task")["evaluation"], strict=False)
    assert shown_config == arithmetic()
    run = trained(run_training, project, shown_config, steps=2, decay_steps=0, warmup_steps=0)
    [task] = pin(shown_config, project).tasks
    assert run.config["evaluation"]["tasks"] == [
        {"name": "arithmetic", "format": "choices", "task": "mylab.tasks:arithmetic", "limit": 0,
         "sha256": task.sha256, "code_sha256": task.code_sha256}
    ]  # fmt: skip
    [own] = open_tasks(shown_config, project)
    lines = [{"question": q.context, "choices": [c.strip() for c in q.choices], "answer": 0} for q in own.questions]
    (project / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    file = EvaluationConfig(tasks=(TaskConfig(name="arithmetic", format="choices", path="sums.jsonl"),))
    other = trained(run_training, project, file, "file", steps=2, decay_steps=0, warmup_steps=0)
    scores, expected = run.stats["tasks"]["arithmetic"], other.stats["tasks"]["arithmetic"]
    assert scores["questions"] == 200
    assert scores["sha256"] == task.sha256
    assert {**scores, "sha256": ""} == {**expected, "sha256": ""}


def test_an_edit_or_other_records_are_another_run(project):
    shown(project, "An evaluation task")
    first = pin(arithmetic(), project).tasks[0]
    path = project / "mylab" / "tasks.py"
    path.write_text(path.read_text() + "# edited\n")
    edited = pin(arithmetic(), project).tasks[0]
    assert edited.sha256 == first.sha256
    assert edited.code_sha256 != first.code_sha256
    with pytest.raises(ConfigError, match=f"code_sha256 {edited.code_sha256}, the configuration states"):
        pin(arithmetic(code_sha256=first.code_sha256), project)
    path.write_text(path.read_text().replace("Random(0)", "Random(1)"))
    with pytest.raises(ConfigError, match="Give the intended function"):
        pin(arithmetic(sha256=first.sha256), project)
    # Nothing changes in the key of a run without own tasks.
    plain = TaskConfig(name="a", format="choices", path="a.jsonl").model_dump(mode="json")
    assert plain == {"name": "a", "format": "choices", "sha256": "", "limit": 0}


RECORD = "{'question': 'a', 'choices': ['b', 'c'], 'answer': 0}"
BROKEN_TASKS = {
    "raise KeyError('x')": r"arithmetic \(mylab\.tasks:arithmetic\), record 1: KeyError: 'x' at tasks\.py:2",
    f"yield {RECORD}\n    raise KeyError('x')": "record 2: KeyError",
    "return []": "yields no record",
    "return 7": "'int' object is not iterable",
    "yield 'a'": "record 1: TypeError: it is str, not a mapping",
    "yield {'question': {1}}": "canonical JSON has no form for set",
    f"yield {RECORD}\n    yield {{**{RECORD}, 'answer': 2}}": r"tasks:arithmetic, record 2: does not have the format",
    f"yield {RECORD}\n    yield {{'question': 'a', 'choices': ['b']}}": "record 2: .*answerKey or answer",
    f"import time\n    yield {{**{RECORD}, 'now': time.time_ns()}}": "yields other records when it is called again",
    "\n    while True: pass": "no answer after 0.3 seconds",
}


@pytest.mark.parametrize(("body", "words"), BROKEN_TASKS.items())
def test_a_task_that_fails_starts_no_training(project, body, words):
    (project / "mylab" / "tasks.py").write_text(f"def arithmetic():\n    {body}\n")
    config = arithmetic(seconds=0.3)
    with pytest.raises(ConfigError, match=words):
        open_tasks(pin(config, project), project)


def test_a_task_that_is_not_there_is_named(project):
    with pytest.raises(MissingInput, match=r"arithmetic: task = 'mylab.tasks:arithmetic': no module mylab\.tasks"):
        pin(arithmetic(), project)
    with pytest.raises(ValueError, match="has a path and a task"):
        arithmetic(path="a.jsonl")


RANKS = """
import sys
from pathlib import Path

from tests.pretrain import test_own_training_code as here
from tests.pretrain.rank_runs import load_conftest
project = Path(sys.argv[1])
call = here.CallbackConfig(function="mylab.hooks:on_event")
train = load_conftest()._run_training
here.trained(train, project, here.arithmetic(), zero_stage=1, micro_batch_size=2, callbacks=(call,))
"""


@pytest.mark.slow
def test_two_ranks_score_an_own_task_and_only_the_first_calls_back(project, run_training):
    shown(project, "An evaluation task")
    shown(project, "A callback on events of the training")
    well, output = run_ranks(project / "logs", ["-c", RANKS, str(project)], ranks=2)
    assert well, output[-3000:]
    [held] = (project / "root" / "train").glob("*/losses.json")
    [shared] = json.loads(held.read_bytes())["tasks"]
    alone = trained(run_training, project, arithmetic(), "alone").stats["tasks"]["arithmetic"]
    assert (shared["questions"], shared["sha256"]) == (200, alone["sha256"])
    assert shared["bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-4)
    steps = [line.split()[:2] for line in (project / "losses.txt").read_text().splitlines()]
    assert steps == [["step", str(step)] for step in range(1, 11)]


def test_the_callback_of_the_page_sees_every_event_and_changes_nothing(project, run_training):
    [values] = shown(project, "A callback on events of the training")["train"]["callbacks"]
    callback = CallbackConfig(**{**values, "events": tuple(values["events"])})
    run = run_training(project / "root", folder=project, callbacks=(callback,))
    plain = run_training(project / "plain")
    assert (run.key, run.digest) == (plain.key, plain.digest)
    lines = read_lines(project / "root" / run.folder / "metrics.jsonl")
    names = ("step", "validation", "checkpoint")
    expected = [f"{line['event']} {line['step']} {line.get('loss')}" for line in lines if line["event"] in names]
    written = (project / "losses.txt").read_text().splitlines()
    assert sorted(written[:-1]) == sorted(expected)
    assert written[-1] == f"end 10 {run.stats['final_loss']}"
    assert all("seconds_callbacks" in line for line in lines if line["event"] == "step")
    first, last = [line for line in lines if line["event"] == "callback"]
    assert first["sha256"] == last["sha256"] == run.run["callbacks"][0]["sha256"]
    assert (first["calls"], last["calls"], last["errors"]) == (0, len(written), 0)


def test_a_callback_that_raises_or_loops_is_reported_once_and_counted(project, run_training, caplog):
    (project / "mylab" / "hooks.py").write_text(
        "import torch\n\ndef first(line):\n    torch.set_num_threads(2)\n    line['loss'] = 0.0\n\n"
        "def second(line):\n    while line['step'] == 3: pass\n"
    )
    callbacks = [CallbackConfig(function=f"mylab.hooks:{name}", seconds=0.2) for name in ("first", "second")]
    run = run_training(project / "root", folder=project, callbacks=tuple(callbacks))
    assert run.digest == run_training(project / "plain").digest
    counts = [(facts["calls"], facts["errors"]) for facts in run.run["callbacks"]]
    assert counts == [(10, 10), (10, 1)]
    [failed] = [line for line in caplog.messages if "mylab.hooks:first failed at the event 'step' of step 1" in line]
    assert "does not support item assignment" in failed
    assert "hooks.py" in failed
    [looped] = [line for line in caplog.messages if "mylab.hooks:second failed at the event 'step' of step 3" in line]
    assert "no answer after 0.2 seconds" in looped
    assert [line for line in caplog.messages if "mylab.hooks:first failed 10 times in 10 calls" in line]
    seconds = [line["seconds_callbacks"] for line in read_lines(project / "root" / run.folder / "metrics.jsonl")
               if line["event"] == "step"]  # fmt: skip
    assert seconds[0] == 0.0
    assert max(seconds) == seconds[3] > 0.2, "the time of step 3's call is in the record of step 4"


def test_a_callback_may_end_the_training_and_a_corrected_one_continues_it(project, run_training):
    hooks = project / "mylab" / "hooks.py"
    hooks.write_text("def strict(line):\n    assert line['step'] < 6, 'too far'\n")
    callback = CallbackConfig(function="mylab.hooks:strict", on_error="fail")
    with pytest.raises(ConfigError, match=r"(?s)at the event 'step' of step 6; .*saved.*AssertionError: too far"):
        run_training(project / "root", folder=project, callbacks=(callback,))
    hooks.write_text("def strict(line):\n    pass\n")
    run = run_training(project / "root", folder=project, callbacks=(callback,))
    starts = [line["step"] for line in read_lines(project / "root" / run.folder / "metrics.jsonl")
              if line["event"] == "start"]  # fmt: skip
    assert starts == [0, 6]
    plain = run_training(project / "plain")
    assert run.stats["losses_sha256"] == plain.stats["losses_sha256"]


def test_wrong_callbacks_are_refused_before_training(project, run_training):
    wrong = CallbackConfig(function="mylab.hooks:nothing")
    with pytest.raises(MissingInput, match=r"train\.callbacks: function = 'mylab.hooks:nothing': no module"):
        run_training(project / "root", folder=project, callbacks=(wrong,))
    (project / "mylab" / "hooks.py").write_text("def other(line):\n    pass\n")
    with pytest.raises(ConfigError, match="has no function 'nothing'; it has: other"):
        open_callbacks((wrong,), project)
    assert not (project / "root" / "train").exists()


def test_what_a_callback_gets_cannot_be_changed():
    values = {"a": {"b": [1, {"c": 2}]}}
    frozen = read_only(values)
    values["a"]["b"].append(3)
    assert frozen == {"a": {"b": (1, {"c": 2})}}
    with pytest.raises(TypeError):
        frozen["a"]["d"] = 1

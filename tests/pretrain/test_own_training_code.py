"""Own code of the training: the page's examples, and every way in which it can fail."""

import json
import os
import pickle
import re
import signal
import tomllib
from pathlib import Path

import pytest
import torch

from governance.errors import ConfigError, MissingInput, Preempted
from governance.files import read_lines
from pretrain.callbacks import Callbacks, OwnCallback, open_callbacks
from pretrain.checkpoint.format import read_checkpoint, read_state
from pretrain.config.optim import OptimConfig
from pretrain.config.training import CallbackConfig, EvaluationConfig, SkipConfig, TaskConfig
from pretrain.evaluation.scores import encode_tasks
from pretrain.evaluation.tasks import open_tasks, pin
from pretrain.optim import own_optimizer as own
from pretrain.optim.optimizers import make_optimizer, parameter_groups, pin_optimizer
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


@pytest.mark.slow
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
    # Nothing changes in the key of a run without custom tasks.
    plain = TaskConfig(name="a", format="choices", path="a.jsonl").model_dump(mode="json")
    assert plain == {"name": "a", "format": "choices", "sha256": "", "limit": 0}


RECORD = "{'question': 'a', 'choices': ['b', 'c'], 'answer': 0}"
BROKEN_TASKS = {
    "raise KeyError('x')": r"arithmetic \(mylab\.tasks:arithmetic\), record 1: KeyError: 'x' at tasks\.py:2",
    f"yield {RECORD}\n    raise KeyError('x')": "record 2: KeyError",
    "return []": "yields no record",
    "return 7": "'int' object is not iterable",
    "raise SystemExit": "record 1: SystemExit",
    "yield 'a'": "record 1: TypeError: it is str, not a mapping",
    "yield {'question': {1}}": "canonical JSON has no form for set",
    f"yield {RECORD}\n    yield {{**{RECORD}, 'answer': 2}}": r"tasks:arithmetic, record 2: does not have the format",
    f"yield {RECORD}\n    yield {{'question': 'a', 'choices': ['b']}}": "record 2: .*answerKey or answer",
    f"import time\n    yield {{**{RECORD}, 'now': time.time_ns()}}": "yields other records when it is called again",
    "\n    while True: pass": r"no answer after 0\.3 seconds at tasks\.py:3",
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


UNLIKE = """
import os


def arithmetic():
    yield {"question": os.environ.get("RANK", "0"), "choices": ["b", "c"], "answer": 0}
"""


@pytest.mark.slow
def test_ranks_whose_records_differ_train_nothing(project, run_training):
    (project / "mylab" / "tasks.py").write_text(UNLIKE)
    (project / "mylab" / "hooks.py").write_text("def on_event(line):\n    pass\n")
    well, output = run_ranks(project / "logs", ["-c", RANKS, str(project)], ranks=2)
    assert not well
    assert output.count("ConfigError: the ranks have different recipes (") == 2
    [folder] = (project / "root" / "train").iterdir()  # that of the first rank
    assert not (project / "root" / "checkpoint").exists()
    assert "step" not in [line["event"] for line in read_lines(folder / "metrics.jsonl")]
    call = CallbackConfig(function="mylab.hooks:on_event")
    assert trained(run_training, project, arithmetic(), callbacks=(call,)).key.startswith(folder.name)
    well, output = run_ranks(project / "logs", ["-c", RANKS, str(project)], ranks=2)  # now the first finds its run
    assert not well
    assert output.count("ConfigError: the ranks have different recipes (") == 2


def page_optimizer(project, **changes):
    """Settings of the page's optimizer, by the names that `run_training` takes."""
    values = shown(project, "An optimizer")["optim"] | changes
    return {**values, "code_sha256": pin_optimizer(OptimConfig(**values), project).code_sha256, "folder": project}


COUNTING = """
import torch


class Counting(torch.optim.AdamW):
    pass


def make(groups, values):
    return Counting(groups, lr=values["learning_rate"], betas=values["betas"], eps=values["eps"])
"""


def test_an_own_optimizer_learns_as_the_same_one_of_assay(project, run_training, losses_of):
    (project / "mylab" / "optim.py").write_text(COUNTING)
    values = {"function": "mylab.optim:make", "folder": project}
    ours = run_training(project / "own", optimizer="own", zero_stage=0, **values)
    theirs = run_training(project / "theirs", zero_stage=0)
    assert losses_of(ours, project / "own") == pytest.approx(losses_of(theirs, project / "theirs"), rel=1e-5)


@pytest.mark.slow
def test_a_restarted_own_optimizer_learns_as_one_without_restart(project, run_training, kill_at):
    """Moments and the count of steps return, also after a step that was skipped."""
    shown(project, "An optimizer")
    (project / "mylab" / "optim.py").write_text(COUNTING)
    settings = {
        "optimizer": "own", "function": "mylab.optim:make", "elementwise": True, "folder": project,
        "zero_stage": 1, "learning_rate": 1e-9, "every_steps": 6,
        "skip": SkipConfig(z_score=1e-9, window=8, warmup_steps=4, most_skips=9),
    }  # fmt: skip
    whole = run_training(project / "whole", **settings)

    kill_at(9, project / "again", **settings)
    again = run_training(project / "again", **settings)
    assert again.digest == whole.digest
    assert whole.stats["skipped_steps"] > 0
    state = json.loads((project / "again" / Path(again.stats["checkpoint"]["path"]).parent / "state.json").read_bytes())
    updates = 10.0 - whole.stats["skipped_steps"]
    assert list(state["scalars"].values()) == [{"step": updates}] * len(state["scalars"])


BEST = """
import torch


class Best(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                state.setdefault("best", float("inf"))
                state["k"] = state.get("k", 0) + 1
                state["worst"] = float("-inf") if state["k"] > 3 else 0.0
                state["lost"] = torch.tensor(float("nan") if state["k"] > 3 else 1.0)
        super().step(closure)


def make(groups, values):
    return Best(groups, lr=values["learning_rate"])
"""


def test_scalars_that_are_not_finite_come_back(project, run_training, at_step):
    (project / "mylab" / "optim.py").write_text(BEST)
    settings = {
        "optimizer": "own", "function": "mylab.optim:make", "folder": project, "zero_stage": 0, "state_tensors": 0,
        "steps": 6, "decay_steps": 0, "every_steps": 4, "validate_every_steps": 0,
    }  # fmt: skip
    at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted):
        run_training(project / "root", **settings)
    run = run_training(project / "root", **settings)
    folder = project / "root" / Path(run.stats["checkpoint"]["path"]).parent
    held = json.loads((folder / "state.json").read_bytes())["scalars"]
    assert {tuple(sorted(each.items())) for each in held.values()} == {
        (("best", "inf"), ("k", 6.0), ("lost", "nan"), ("worst", "-inf"))
    }
    state = read_state(read_checkpoint(folder, project / "root"), project / "root")
    assert {(each["best"], each["k"], str(each["lost"]), each["worst"]) for each in state.scalars.values()} == {
        (float("inf"), 6.0, "nan", float("-inf"))
    }


OPTIMIZER_RANKS = """
import json
import sys
from pathlib import Path

from tests.pretrain import test_own_training_code as here
from tests.pretrain.rank_runs import load_conftest
project, conftest = Path(sys.argv[1]), load_conftest()
shown = json.loads((project / "settings.json").read_bytes())
for name, (stage, precision) in here.LAYOUTS.items():
    settings = {**shown, "folder": project, "zero_stage": stage, "precision": precision, "micro_batch_size": 2}
    whole = conftest._run_training(project / f"whole-{name}", **settings)
    root = project / f"again-{name}"
    wrong = here.CallbackConfig(function="mylab.hooks:stop", on_error="fail")
    try:
        conftest._run_training(root, callbacks=(wrong,), **settings)
    except here.ConfigError:
        pass
    again = conftest._run_training(root, **settings)
    assert again.digest == whole.digest, name
    assert whole.run["execution"]["world_size"] == 2
"""


LAYOUTS = {"0": (0, "fp32"), "1": (1, "fp32"), "1-bf16": (1, "bf16"), "3": (3, "fp32")}


@pytest.mark.slow
def test_two_ranks_restart_an_own_optimizer_at_any_stage(project, run_training, losses_of):
    (project / "mylab" / "hooks.py").write_text("def stop(line):\n    assert line['step'] < 6\n")
    settings = page_optimizer(project) | {"learning_rate": 3e-3}
    (project / "settings.json").write_text(json.dumps({**settings, "folder": ""}))
    well, output = run_ranks(project / "logs", ["-c", OPTIMIZER_RANKS, str(project)], ranks=2)
    assert well, output[-3000:]
    alone = losses_of(run_training(project / "alone", **settings), project / "alone")
    for name, (_, precision) in LAYOUTS.items():
        [losses] = (project / f"whole-{name}" / "train").glob("*/losses.json")
        rounding = 1e-3 if precision == "fp32" else 2e-2
        assert json.loads(losses.read_bytes())["losses"] == pytest.approx(alone, rel=rounding), name


STEP = "    @torch.no_grad()\n    def step(self, closure=None):\n        for group in self.param_groups:\n"
EACH = "            for w in group['params']:\n                state = self.state[w]\n                "
BROKEN_OPTIMIZERS = {
    "raise KeyError('x')": "mylab.optim:make.*KeyError: 'x' at optim",
    "return 7": "it returned int, not a torch.optim.Optimizer",
    "raise SystemExit": "mylab.optim:make.*SystemExit",
    "return Own(groups, 'w.sub_(w.grad + torch.randn_like(w))')": "a restart after 12 .* or draws random numbers",
    "while True: pass": "no answer after 0.3 seconds",
    "return torch.optim.SGD([p for g in groups for p in g['params']])": "other parameter groups than those given",
    "return Own(groups, 'state[\"row\"] = w.mean(0)')": r"its state 'row' is torch.float32 \(6,\) for a .*parameter",
    "return Own(groups, 'w.sub_(w.grad)')": r"optim.state_tensors = 2, but it keeps 0 \(none\); set it to 0",
    "return Own(groups, 'self.k = getattr(self, \"k\", 0) + 1; w.sub_(self.k * w.grad)')": "a restart after 12 steps",
    "return Own(groups, 'self.k = getattr(self, \"k\", 0) + 1; w.sub_((self.k > 40) * w.grad)')": "a restart after",
    "return Own(groups, 'group[\"k\"] = group.get(\"k\", 0) + 1; w.sub_(w.grad)')": "it changes 'k' of its parameter",
    "return Own(groups, 'state[\"a.b\"] = 1; w.sub_(w.grad)')": "its state has the name 'a.b'",
    "return Own(groups, 'state[\"m\"] = w * 1; state[\"n\"] = w * 1; w.sub_(w.grad / w.grad.norm())')":
        "it updates the halves of a parameter differently",
}  # fmt: skip
OWN = f"""
import torch


class Own(torch.optim.Optimizer):
    def __init__(self, groups, code):
        super().__init__(groups, {{}})
        self.code = code

{STEP}{EACH}exec(self.code)
"""


@pytest.mark.parametrize(("body", "words"), BROKEN_OPTIMIZERS.items())
def test_an_optimizer_that_could_not_be_restored_is_refused(project, monkeypatch, body, words):
    monkeypatch.setattr(own, "_SECONDS", 0.3 if "while" in body else 120.0)
    (project / "mylab" / "optim.py").write_text(f"{OWN}\n\ndef make(groups, values):\n    {body}\n")
    values = {"optimizer": "own", "function": "mylab.optim:make", "learning_rate": 0.1, "elementwise": True}
    config = OptimConfig(**values)
    weights = [("w", torch.nn.Parameter(torch.ones(8, 8))), ("v", torch.nn.Parameter(torch.ones(8)))]
    groups = parameter_groups(weights, config, lambda parameter: parameter.shape)
    with pytest.raises(ConfigError, match=words):
        make_optimizer(groups, config, project)


def test_an_edited_optimizer_is_another_run_and_no_continuation(project, run_training):
    short = {"steps": 4, "decay_steps": 0, "validate_every_steps": 0}
    first = run_training(project / "root", **page_optimizer(project), **short)
    path = project / "mylab" / "optim.py"
    path.write_text(path.read_text() + "# edited\n")
    values = {name: value for name, value in shown(project, "An optimizer")["optim"].items() if name != "code_sha256"}
    path.write_text(path.read_text() + "# edited\n")
    edited = pin_optimizer(OptimConfig(**values), project).code_sha256
    assert edited != first.config["optim"]["code_sha256"]
    with pytest.raises(ConfigError, match=r"code_sha256 .*, the configuration states"):
        pin_optimizer(OptimConfig(**values, code_sha256="0" * 64), project)
    with pytest.raises(ConfigError, match="changed while the stage ran"):
        run_training(project / "other", **{**values, "code_sha256": "0" * 64, "folder": project}, **short)
    parent = str(project / "root" / Path(first.stats["checkpoint"]["path"]).parent)
    with pytest.raises(ConfigError, match=r"optim\.code_sha256 is '.*' there"):
        run_training(
            project / "root", **{**values, "code_sha256": edited, "folder": project},
            **{**short, "steps": 8}, continue_from=parent,
        )  # fmt: skip
    # Nothing changes in the key of a run without own code.
    assert not {"function", "arguments", "code_sha256"} & OptimConfig(learning_rate=1).model_dump().keys()


def test_ranks_share_parameters_only_of_elementwise_optimizers(project, run_training):
    values = page_optimizer(project, elementwise=False)
    with pytest.raises(ConfigError, match=r"(?s)'own' with engine\.zero_stage = 1: ranks would update pieces"):
        run_training(project / "root", **values)
    with pytest.raises(ValueError, match="set optimizer = 'own' and the function, or neither"):
        OptimConfig(learning_rate=0.1, optimizer="own")


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
        "import sys, torch\n\ndef first(line):\n    torch.set_num_threads(2)\n"
        "    torch.set_default_dtype(torch.float64)\n    line['loss'] = 0.0\n    sys.exit()\n\n"
        "def second(line):\n    assert line['loss'] > 0\n    while line['step'] == 3: pass\n"
    )
    callbacks = [CallbackConfig(function=f"mylab.hooks:{name}", seconds=1.0) for name in ("first", "second")]
    run = run_training(project / "root", folder=project, callbacks=tuple(callbacks))
    assert run.digest == run_training(project / "plain").digest
    counts = [(facts["calls"], facts["errors"]) for facts in run.run["callbacks"]]
    assert counts == [(10, 10), (10, 1)]
    [failed] = [line for line in caplog.messages if "mylab.hooks:first failed at the event 'step' of step 1" in line]
    assert "SystemExit" in failed
    assert "hooks.py" in failed
    [looped] = [line for line in caplog.messages if "mylab.hooks:second failed at the event 'step' of step 3" in line]
    assert "no answer after 1 seconds" in looped
    assert [line for line in caplog.messages if "mylab.hooks:first failed 10 times in 10 calls" in line]
    seconds = [line["seconds_callbacks"] for line in read_lines(project / "root" / run.folder / "metrics.jsonl")
               if line["event"] == "step"]  # fmt: skip
    assert seconds[0] == 0.0
    assert max(seconds) == seconds[3] > 1.0, "the time of step 3's call is in the record of step 4"


def test_a_callback_may_end_the_training_and_a_corrected_one_continues_it(project, run_training):
    hooks = project / "mylab" / "hooks.py"
    hooks.write_text("def strict(line):\n    assert line['step'] < 6, 'too far'\n")
    callback = CallbackConfig(function="mylab.hooks:strict", on_error="fail")
    with pytest.raises(ConfigError, match=r"(?s)at the event 'step' of step 6; .*saved.*AssertionError: too far"):
        run_training(project / "root", folder=project, callbacks=(callback,))
    hooks.write_text("def strict(line):\n    pass\n")
    run = run_training(project / "root", folder=project, callbacks=(callback,))
    lines = read_lines(project / "root" / run.folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["event"] == "start"] == [0, 6]
    counts = [(line["step"], line["calls"], line["errors"]) for line in lines if line["event"] == "callback"]
    assert counts == [(0, 0, 0), (6, 6, 1), (6, 0, 0), (10, 4, 0)]
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


def test_a_stopped_attempt_delivers_its_checkpoint_and_records_the_totals(project, run_training, at_step):
    (project / "mylab" / "hooks.py").write_text(
        "def note(line):\n    open('seen.txt', 'a').write(f\"{line['event']} {line['step']}\\n\")\n"
    )
    callback = CallbackConfig(function="mylab.hooks:note", events=("checkpoint", "end"))
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted):
        run_training(project / "root", folder=project, callbacks=(callback,))
    [record] = (project / "root" / "train").glob("*/metrics.jsonl")
    totals = [line for line in read_lines(record) if line["event"] == "callback"][-1]
    assert (project / "seen.txt").read_text() == f"checkpoint {totals['step']}\n"
    assert (totals["calls"], totals["errors"]) == (1, 0)


def test_each_callback_gets_a_plain_copy():
    seen, config = [], CallbackConfig(function="a:b")

    def change(line):
        line["groups"]["a"].append(3)

    functions = (change, change, lambda line: seen.append((json.dumps(line), pickle.dumps(line))))
    callbacks = Callbacks([OwnCallback(config, function, "") for function in functions])
    values = {"a": [1, 2]}
    callbacks.observing(lambda event, step, **values: None)("step", 1, groups=values)
    values["a"].clear()
    callbacks.run()
    expected = {"event": "step", "step": 1, "groups": {"a": [1, 2]}}
    assert [(json.loads(text), pickle.loads(data)) for text, data in seen] == [(expected, expected)]

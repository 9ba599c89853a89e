"""Random trainings on 1, 2 and 4 ranks at random stages: equal bits, and replays as if a document had never been."""

import json
import os
import random

import pytest

from tests.pretrain.rank_runs import run_ranks

PLAIN = {"steps": 6, "validate_every_steps": 3, "every_steps": 2, "keep_last": 9, "decay_steps": 2}
KINDS = (
    {"rank_invariant": True, "precision": "fp32", "optimizer": "lion", "learning_rate": 3e-4, "threads": 2},
    {"rank_invariant": True, "precision": "bf16", "activation_checkpointing": "full"},
    {"rank_invariant": True, "precision": "bf16", "optimizer": "muon", "z_loss": 1e-3},
    {"rank_invariant": True, "precision": "autocast", "tie_word_embeddings": True},
    {"rank_invariant": False, "precision": "fp32"},
    {"rank_invariant": False, "precision": "bf16"},
)


def random_run(kind, chance):
    """Settings of a training; `stages` may differ between ranks, and it is stopped in the middle of the step `stop`."""
    made = {**PLAIN, **kind, "seed": chance.randrange(1000), "micro_batch_size": chance.choice([1, 2])}
    made |= {"gradient_clipping": chance.choice([0.1, 1.0]), "global_batch_size": chance.choice([8, 16, 24])}
    if chance.random() < 0.5:
        made["batch_size_ramp"] = [{"until_step": chance.choice([2, 3]), "global_batch_size": 8}]
    if chance.random() < 0.5:
        made["mixture"] = [
            {"from_step": chance.choice([2, 4]), "weights": {"web": 1.0, "books": chance.choice([2.0, 5])}}
        ]
    stages = [1, 2, 3] if made["precision"] == "bf16" else [0, 1, 2, 3]
    first = chance.choice(stages)
    return {**made, "stop": chance.choice([0, 3, 5]), "stages": stages if made["rank_invariant"] else [first, first]}


RANKS = """
import json, os, random
from pathlib import Path
import pytest
from governance.errors import Preempted
from pretrain import loop
from pretrain.config.training import MixtureConfig, RampConfig
from pretrain.optim.optimizers import rate_factor
from tests.pretrain.replays import *
folder, ranks = Path({folder!r}), int(os.environ["WORLD_SIZE"])
found = {{}}

def kept(root, run):
    return [learned(root, run), json.loads((root / run.folder / "losses.json").read_bytes())["losses"]]

for name, made in list(json.loads((folder / "runs.json").read_text()).items())[:2 if ranks == 4 else None]:
    made["batch_size_ramp"] = tuple(RampConfig(**stage) for stage in made.pop("batch_size_ramp", ()))
    made["mixture"] = tuple(MixtureConfig(**phase) for phase in made.pop("mixture", ()))
    stop, root = made.pop("stop"), folder / str(ranks) / name
    stages = random.Random(name + str(ranks)).sample(made.pop("stages"), 2)
    tokens = write_tokens(root)
    if stop:  # stopped in the middle of a step, and resumed at another stage
        def rate(step, *more):
            if step == stop:
                raise Preempted("in the middle of a step")
            return rate_factor(step, *more)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
            patch.setattr(loop, "rate_factor", rate)
            train(root, tokens, **made, zero_stage=stages[1])
    run = train(root, tokens, **made, zero_stage=stages[0])
    found[name] = {{"run": kept(root, run)}}
    if ranks == 4:
        continue
    # A replay without the two documents that are read last, at the other stage; and a run that never held them.
    names, first = last_read(root, tokens, made)
    clean = (first - 1) // 2 * 2
    removed = {{"removed_documents": identities_of(names), "zero_stage": stages[1]}}
    if clean:
        removed["continue_from"] = checkpoint_at(root, run, clean)
    never = root.with_name(name + "-never")
    found[name] |= {{"first": first, "replay": kept(root, train(root, tokens, **made, **removed)),
                    "never": kept(never, train(never, write_tokens(never, without=names), **made,
                                               zero_stage=stages[0]))}}
if os.environ["RANK"] == "0":
    (folder / str(ranks) / "found.json").write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_random_runs_have_equal_bits_on_any_ranks_and_replays_equal_those_that_never_held(tmp_path):
    """Four runs on one and two ranks, two of them on four; the draws are new each time, but in CI."""
    chance, found = random.Random(7 if os.environ.get("CI") else None), {}
    kinds = [*chance.sample(KINDS[:4], 3), chance.choice(KINDS[4:])]
    runs = {str(number): random_run(kind, chance) for number, kind in enumerate(kinds)}
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    for ranks in (1, 2, 4):
        (tmp_path / str(ranks)).mkdir()
        well, output = run_ranks(tmp_path / f"logs{ranks}", ["-c", RANKS.format(folder=str(tmp_path))], ranks)
        assert well, (runs, output[-6000:])
        found[ranks] = json.loads((tmp_path / str(ranks) / "found.json").read_bytes())
    for name, made in runs.items():
        one, two = (found[ranks][name] for ranks in (1, 2))
        if made["rank_invariant"]:
            assert one == two, made
        if name in found[4]:
            assert one["run"] == found[4][name]["run"], made
        for each in (one, two):
            assert each["replay"] == each["never"], made
            assert each["replay"][1][each["first"] - 1] != each["run"][1][each["first"] - 1], made  # the rate may be 0
            before = each["first"] - 1
            assert each["replay"][1][:before] == each["run"][1][:before], made
        assert one["run"][1][-1] < one["run"][1][0], made
    assert len(found[4]) == 2
    assert len({str(each["run"][0]) for each in found[1].values()}) == len(runs)

"""A dry run describes a start in advance, and refuses with the same words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from assay.cli.main import main
from assay.config import load_run
from governance.errors import ConfigError, PipelineError
from pretrain.config.training import gradient_accumulation_steps
from pretrain.distributed.process_group import Ranks
from pretrain.engine.deepspeed_config import deepspeed_config
from pretrain.model.flops import active_parameter_count, flops_per_token, parameter_count
from pretrain.preflight import hardware
from pretrain.preflight.compatibility import check_start
from pretrain.preflight.hardware import Hardware
from pretrain.preflight.memory_room import refuse_what_cannot_fit

CONFIGS = Path(__file__).parents[2] / "configs"
CPU = ("--set", 'engine.device="cpu"', "--set", "engine.micro_batch_size=1")


@pytest.fixture
def dry(project, capsys):
    """`dry(*words)`: the exit status and the output on both streams."""

    def run(*words):
        status = main(["train", str(project / "run.toml"), "--root", str(project / "root"), "--dry-run", *CPU, *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def the_run(project, *settings):
    return load_run(project / "run.toml", ['engine.device="cpu"', "engine.micro_batch_size=1", *settings]).config


def start(project, settings, ranks):
    """The first things that a start looks at."""
    run = load_run(project / "run.toml", ['engine.device="cpu"', "engine.micro_batch_size=1", *settings])
    check_start(run.config.recipe, run.settings, hardware.cpu_hardware(ranks))


def test_a_run_without_a_corpus_is_reported_and_nothing_is_written(project, dry):
    status, out, err = dry("--nproc", "2")
    assert status == 0, err
    config = the_run(project)
    size, length = config.data.tokenizer.vocabulary_size, config.train.sequence_length
    assert f"{size:,} ids, as [data.tokenizer] requests" in out
    assert (
        f"{parameter_count(config.model, size):,} parameters, {flops_per_token(config.model, size, length):,} " in out
    )
    tokens = config.train.global_batch_size * length
    assert f"{tokens:,} per step, {tokens * config.train.steps:,} in {config.train.steps:,} steps" in out
    assert "2 rank(s), 2 per node: 2 data x 1 sequence x 1 tensor" in out
    steps = gradient_accumulation_steps(config.train.global_batch_size, config.engine.micro_batch_size, 2)
    assert f"{steps} micro batch(es) of {config.engine.micro_batch_size} row(s)" in out
    assert "moments" in out
    found = json.loads(re.search(r"^deepspeed +(\{.*^\})$", out, re.DOTALL | re.MULTILINE)[1])
    assert found == json.loads(json.dumps(deepspeed_config(config.recipe, config.engine, 2, "cpu", size)))
    assert not (project / "root").exists()


def test_the_vocabulary_is_the_shards_where_they_are(project, dry):
    assert (
        main(["data", "prepare", str(project / "run.toml"), "--root", str(project / "root"), "--data-workers", "1"])
        == 0
    )
    [manifest] = (project / "root").glob("tokenizer/*/manifest.json")
    made = json.loads(manifest.read_bytes())["stats"]["vocabulary_size"]
    artifacts = "[!f]*/**/*"  # `fetch` remembers digests of sources
    before = sorted((project / "root").glob(artifacts))
    status, out, err = dry()
    assert status == 0, err
    assert f"{made:,} ids, as the token shards have them" in out
    assert sorted((project / "root").glob(artifacts)) == before != []
    [tokenizer] = (project / "root").glob("tokenizer/*/tokenizer.json")
    elsewhere = ("--root", str(project / "nowhere"), "--set", f'data.tokenizer.path="{tokenizer}"')
    status, out, err = dry(*elsewhere, "--set", "data.tokenizer.vocabulary_size=9999")
    assert status == 0, err
    assert f"{made:,} ids, as [data.tokenizer] requests" in out


def test_stages_of_a_batch_and_experts_are_reported(project, dry):
    ramp = "train.batch_size_ramp=[{until_step=2,global_batch_size=2}]"
    experts = "model.moe={num_local_experts=4,num_experts_per_tok=1,norm_topk_prob=false}"
    status, out, err = dry("--set", ramp, "--set", experts)
    assert status == 0, err
    config = the_run(project, ramp, experts)
    train, size = config.train, config.data.tokenizer.vocabulary_size
    total = (2 * 2 + (train.steps - 2) * train.global_batch_size) * train.sequence_length
    assert (
        f"{2 * train.sequence_length:,} -> {train.global_batch_size * train.sequence_length:,} per step, {total:,} in"
        in out
    )
    assert f"({active_parameter_count(config.model, size):,} for each token)" in out


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--nproc", "3"], []),
        ([], ['train.precision="fp16"', "engine.zero_stage=1"]),
        (["--ranks", "4", "--nproc", "2"], ["engine.tensor_parallel_size=3"]),
        ([], ["engine.hpz_partition_size=2"]),
    ],
)
def test_what_does_not_work_is_refused_with_the_words_of_a_start(project, dry, words, settings):
    status, out, err = dry(*words, *(word for setting in settings for word in ("--set", setting)))
    assert status == 78
    given = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    node = given.get("--nproc", 1)
    with pytest.raises(ConfigError) as refused:
        start(project, settings, Ranks(0, given.get("--ranks", node), 0, node))
    assert str(refused.value) in err
    assert "would start" not in out


def test_what_does_not_fit_is_refused_with_the_words_of_a_start(project, dry, monkeypatch):
    monkeypatch.setattr(hardware, "free_host_bytes", lambda: 600 << 20)
    status, out, err = dry("--nproc", "4")
    assert status == 1
    config = the_run(project)
    room = Hardware(Ranks(0, 4, 0, 4), "cpu", device_bytes=150 << 20, host_bytes=150 << 20)
    size = config.data.tokenizer.vocabulary_size
    with pytest.raises(PipelineError) as refused:
        refuse_what_cannot_fit(config.recipe, config.engine, size, room)
    assert str(refused.value) in err
    assert "deepspeed   {" in out
    assert "would start" not in out


def test_a_gpu_that_is_not_there_is_refused(project, dry, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, out, err = dry("--set", 'engine.device="cuda"')
    assert (status, "parameters" in out) == (78, True)
    assert "this machine shows no GPU" in err


@pytest.fixture
def plan(tmp_path, capsys):
    """`plan(preset, *words)`: exit status and output of a plan for nodes of eight GPUs."""

    def run(preset, *words):
        place = [str(CONFIGS / f"{preset}.toml"), "--root", str(tmp_path / "root")]
        status = main(["train", *place, "--dry-run", "--device", "cuda", "--nproc", "8", *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_seventy_billion_parameters_are_planned_for_gpus_from_a_node_without_one(plan):
    """At stage 1 a node of eight is refused, with the reasons and an offer that would fit; the offer itself passes."""
    first = ["--set", "engine.zero_stage=1", "--set", "engine.hpz_partition_size=1"]
    status, out, err = plan("70b", "--ranks", "8", "--gpu-memory", "80GiB", *first)
    assert status == 1
    assert "8 data x 1 sequence x 1 tensor; ZeRO stage 1, bf16" in out
    needed, offer = re.search(
        r"needs about (.*) on the device.*?(It would fit.*|No setting.*)", err, re.DOTALL
    ).groups()
    assert float(needed.partition(" ")[0]) > 500
    for part in ("parameters", "gradients", "masters", "moments", "activations", "buffers of communication"):
        assert re.search(rf"{part} [\d,.]+ GiB", err), part
    ranks, settings = re.search(
        r"(\d+) (?:ranks|would do), ?with (.*)\.", offer.replace("ranks with", "ranks, with")
    ).groups()
    words = [
        word for change in settings.split(", ") for word in ("--set", change.replace(" = ", "=").replace("'", '"'))
    ]
    assert plan("70b", "--ranks", ranks, "--gpu-memory", "80GiB", *words)[0] == 0
    assert plan("70b", "--ranks", "8", "--gpu-memory", "1TiB", *first)[0] == 0
    status, out, _ = plan("70b", "--ranks", "512", "--gpu-memory", "80GiB")
    share = int(re.search(r"forecast .* (\d+) % of an H100's bf16 peak", out)[1])
    assert (status, share >= 40) == (0, True)


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["--set", 'engine.device="cpu"', "--gpu-memory", "80GiB"], "--device cuda: a start would compute on 'cpu'"),
        ([], "--device cuda: add the memory of a GPU of those nodes, for example --gpu-memory 80GiB"),
        (["--device", "cpu", "--gpu-memory", "80GiB"], "--gpu-memory requires --device cuda"),
        (["--gpu-memory", "80GiB", "--ranks", "12"], "not a multiple of --nproc 8"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(plan, words, output):
    status, _, err = plan("10m", *words)
    assert (status, output in err) == (78, True), err


def test_ranks_that_mean_nothing_are_refused(project, dry, capsys):
    status, _, err = dry("--ranks", "3", "--nproc", "2")
    assert (status, "not a multiple of --nproc 2" in err) == (78, True)
    assert main(["train", str(project / "run.toml"), "--root", str(project / "root"), "--ranks", "2"]) == 78
    assert "requires --dry-run" in capsys.readouterr().err
    assert main(["train", str(project / "run.toml"), "--root", str(project / "root"), "--device", "cpu"]) == 78
    assert "require --dry-run" in capsys.readouterr().err


def test_a_plan_and_a_dry_run_on_cpu_import_neither_torch_nor_deepspeed(project):
    root = ["--root", str(project / "root")]
    dry = ["train", str(project / "run.toml"), *root, "--dry-run", *CPU]
    planned = ["plan", str(CONFIGS / "7b.toml"), *root, "--cluster", "h100"]
    code = f"import sys\nfrom assay.cli.main import main\nassert main({dry!r}) == main({planned!r}) == 0\n"
    code += "print(sorted({'torch', 'deepspeed'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

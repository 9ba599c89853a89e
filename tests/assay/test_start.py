"""A refusal of a start comes before the corpus is made, with the words of the dry run; torch is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from assay import pipeline
from assay import start_preflight as start
from assay.cli.main import main
from assay.config import load_run
from assay.dry_run import dry_run
from assay.pipeline import corpus, judge_corpus, write_report
from assay.planning.cluster import read_cluster
from assay.planning.plan import Correction, PlanInputs, make_plan
from assay.planning.plan_budget import submission_lines
from assay.planning.plan_page import summary
from assay.start_preflight import LARGEST_GPU, corpus_figures, local_hardware, on_nodes, refuse_start, vocabulary_of
from assay.training_recipe import pinned, training_folder
from governance.checks import expectations
from governance.errors import ConfigError, PipelineError
from governance.gate.policy import Gate
from governance.hooks import Hooks
from governance.lineage.attest import attest_with
from governance.manifest import FILE_NAME
from governance.stage import Runtime
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import Ranks, device_of
from pretrain.initial_weights.model_settings import FAMILIES
from pretrain.preflight import hardware
from pretrain.preflight.forecast import forecast
from pretrain.preflight.hardware import Hardware, hardware_of
from slurm.config import with_site

APART = start._apart  # before the session's fixture asks in this process
MIB = 1 << 20
PLENTY = Hardware(Ranks(), "cpu", device_bytes=1 << 40, host_bytes=1 << 40)


def ranks_of(count: int) -> Ranks:
    return Ranks(0, count, 0, count)


def refusal(action) -> tuple[type, str] | None:
    """Our own exception that it raises, or None."""
    try:
        action()
    except PipelineError as error:
        return type(error), str(error)
    return None


@pytest.fixture
def whole_way(project, capsys):
    """`whole_way(*words)`: exit status and output of `assay run`; nothing may be made."""

    def run(*words):
        root = project / "root"
        status = main(["run", str(project / "run.toml"), "--root", str(root), "--data-workers", "1", *words])
        assert not root.exists()
        return status, capsys.readouterr().err

    return run


def test_a_batch_that_does_not_divide_is_refused_before_a_source_is_read(whole_way):
    status, output = whole_way("--nproc", "3", "--set", 'engine.device="cpu"')
    assert status == 78
    assert "train.global_batch_size = 4 is not a multiple of engine.micro_batch_size x ranks = 4 x 3" in output


def test_a_batch_of_more_rows_than_there_are_is_refused_before_the_audit(project, capsys):
    root = project / "root"
    words = ["--root", str(root), "--data-workers", "1", "--set", "train.global_batch_size=4096"]
    assert main(["run", str(project / "run.toml"), *words]) == 1
    assert "fewer than one batch of 4096. Lower train.global_batch_size" in capsys.readouterr().err
    assert (root / "encode").is_dir()
    assert not (root / "audit").exists()


def test_a_licence_that_the_policy_does_not_allow_is_warned_of_before_anything_is_made(project, caplog):
    sources = 'data.sources=[{type="jsonl",name="x",licence="%s",paths=["*.jsonl"]}]'
    found = {}
    for licence in ("MIT", "CC-BY-NC-4.0", "NOASSERTION", "CC-BY-NC-4.0 OR MIT"):
        caplog.clear()
        start.warn_of_licences(load_run(project / "run.toml", [sources % licence]))
        found[licence] = [record.getMessage() for record in caplog.records]
    assert (
        found["MIT"] == found["CC-BY-NC-4.0 OR MIT"] == found["NOASSERTION"] == []
    )  # the second is refused by `clean`
    [warned] = found["CC-BY-NC-4.0"]
    assert warned.startswith("source x: the policy does not allow its licence CC-BY-NC-4.0, so licences.allowed will")
    caplog.clear()
    kept = [sources % "NOASSERTION", "data.clean.refuse_licences=[]"]
    start.warn_of_licences(load_run(project / "run.toml", kept))
    assert "State the licence that its documents have, remove the source" in caplog.text


def test_licences_that_records_state_are_warned_of_from_the_first_ones(project, caplog):
    """A source's own licence is not warned of if each record states one."""
    rows = [{"text": "a", "licence": "CC-BY-NC-4.0"}, {"text": "b", "licence": "CC0-1.0"}]
    (project / "stated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = 'type="jsonl",name="x",licence="%s",licence_field="licence",paths=["stated.jsonl"]'
    words = ["data.sources=[{%s}]" % (source % "NOASSERTION"), "data.clean.refuse_licences=[]"]
    start.warn_of_licences(load_run(project / "run.toml", words))
    [warned] = [record.getMessage() for record in caplog.records]
    assert "does not allow the licence of its documents CC-BY-NC-4.0, so licences.allowed" in warned
    caplog.clear()
    (project / "stated.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    start.warn_of_licences(load_run(project / "run.toml", words))
    assert "does not allow its licence NOASSERTION" in caplog.text
    caplog.clear()
    (project / "stated.jsonl").write_text(json.dumps({"text": "a", "licence": ["MIT"]}) + "\n")  # for the quarantine
    start.warn_of_licences(load_run(project / "run.toml", words))
    assert caplog.text == ""


def test_an_expectation_that_does_not_exist_is_warned_of_before_the_corpus(project, caplog):
    run = load_run(project / "run.toml", [])
    known = {"suite": "documents", "owner": "data", "why": "the test wants it so", "column": "words"}
    gates = [
        Gate(id="own.right", gx="expect_column_values_to_be_between", kwargs={"min_value": 1}, **known),
        Gate(id="own.wrong", gx="expect_nothing", **known),
        Gate(id="own.argument", gx="expect_column_values_to_be_between", kwargs={"least": 1}, **known),
    ]
    policy = run.policy.model_copy(update={"gate": tuple(gates)})
    start.warn_of_expectations(replace(run, policy=policy), Runtime(project / "root"))
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(":")[0] for line in warned] == ["gate own.wrong", "gate own.argument"]
    assert "has no expectation 'expect_nothing'" in warned[0]


@pytest.mark.parametrize(
    ("fields", "warned"), [({}, 1), ({"severity": "warning"}, 0), ({"where": {"source": "y"}}, 0),
                           ({"where": {"source": "x"}}, 1)],
)  # fmt: skip
def test_a_licence_is_warned_of_where_a_gate_would_close(project, caplog, fields, warned):
    sources = 'data.sources=[{type="jsonl",name="x",licence="CC-BY-NC-4.0",paths=["*.jsonl"]}]'
    run = load_run(project / "run.toml", [sources])
    gates = tuple(gate.model_copy(update=fields) if gate.id == "licences.allowed" else gate for gate in run.policy.gate)
    start.warn_of_licences(replace(run, policy=run.policy.model_copy(update={"gate": gates})))
    assert len(caplog.records) == warned


def test_a_model_that_does_not_fit_is_refused_before_a_source_is_read(whole_way, monkeypatch):
    monkeypatch.setattr(hardware, "free_host_bytes", lambda: 600 * MIB)
    status, output = whole_way("--nproc", "4", "--set", 'engine.device="cpu"', "--set", "engine.micro_batch_size=1")
    assert status == 1
    assert "this model does not fit: a rank needs about" in output
    assert "(4 rank(s) per node)" in output


def test_a_checkpoint_to_go_on_from_that_is_not_there_is_refused_before_a_source_is_read(whole_way):
    status, output = whole_way("--set", "train.continue_from='checkpoint/0123456789abcdef'")
    assert status == 66
    assert "train.continue_from = 'checkpoint/0123456789abcdef'" in output


def test_weights_of_another_model_are_refused_before_a_source_is_read(whole_way, project):
    model = load_run(project / "run.toml", []).config.model.model_dump(mode="json")
    weights_of(project / "weights", {"model_type": "assay", "assay_model": model})
    status, output = whole_way("--set", "train.initial_weights='weights'", "--set", 'engine.device="cpu"')
    assert status == 65
    assert "has no tensor model.embed_tokens.weight" in output


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_going_on_from_hugging_face_weights_is_beginning_with_them(project, family):
    """The same recipe and folder, so the same key, lineage and terms; with frozen parameters too."""
    weights_of(project / "weights", {"model_type": family})
    for named in ("weights", "hf://lab/tiny@main"):
        for more in ([], ["train.adapter={rank=2}"]):
            one, same = (
                load_run(project / "run.toml", [f"train.{field}={json.dumps(named)}", *more])
                for field in ("initial_weights", "continue_from")
            )
            assert one.config == same.config
            assert pinned(one) == pinned(same)
    assert same.source.origins["train.initial_weights"] == "train.continue_from, which names Hugging Face weights"
    with pytest.raises(ConfigError, match="name weights: remove one of them"):
        load_run(project / "run.toml", ["train.initial_weights='weights'", "train.continue_from='weights'"])
    checkpoint = project / "weights" / "manifest.json"
    checkpoint.write_text("{}")
    assert load_run(project / "run.toml", ["train.continue_from='weights'"]).config.train.continue_from == "weights"


def test_what_the_file_alone_shows_is_refused_before_a_source_is_read(whole_way, monkeypatch):
    """A pattern without a match, a missing source, a package that is not installed, a decay that flips signs."""
    for setting, words in (
        ('optim.groups=[{pattern = "lm_haed"}]', "'lm_haed' matches no parameter; the nearest names are lm_head"),
        ("train.mixture=[{from_step = 1, weights = {nobody = 1.0}}]", "train.mixture[entry 1].weights names 'nobody'"),
        ("optim.weight_decay=1e6", "lower the decay"),
        ("engine.deepspeed.gradient_clipping=2.0", "gradient_clipping (set optim.gradient_clipping)"),
        ("engine.deepspeed.prefetch=1", "this DeepSpeed knows no key prefetch"),
    ):
        status, output = whole_way("--set", 'engine.device="cpu"', "--set", setting)
        assert status == 78
        assert words in output
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for setting in ("tracking.tensorboard=true", 'tracking.mode="online"'):
        status, output = whole_way("--set", 'engine.device="cpu"', "--set", setting)
        assert status == 78
        assert "is not installed. Install it with" in output


def test_a_gpu_that_is_not_there_is_refused_before_a_source_is_read(whole_way, monkeypatch):
    monkeypatch.setattr(start, "may_have_gpu", lambda: False)
    status, output = whole_way("--set", 'engine.device="cuda"')
    assert status == 78
    assert "this machine shows no GPU" in output


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_whole_way_refuses_what_the_dry_run_refuses_and_nothing_else(project, data):
    drawn = {name: data.draw(st.sampled_from(values), label=name) for name, values in {
        "zero_stage": (0, 1, 1, 2, 3), "micro_batch_size": (1, 1, 2, 4), "tensor_parallel_size": (1, 1, 1, 2),
        "sequence_parallel_size": (1, 1, 2), "hpz_partition_size": (1, 1, 1, 2),
        "offload_optimizer": ("none", "none", "cpu"),
    }.items()}  # fmt: skip
    count, free = (
        data.draw(st.sampled_from((1, 2, 2, 3, 4)), label="ranks"),
        data.draw(st.sampled_from((300, 700, 2000, 9000, 9000))),
    )
    run = load_run(project / "run.toml", ['engine.device="cpu"'])
    precision = {"precision": data.draw(st.sampled_from(("fp32", "bf16", "bf16", "fp16")))}
    sections = {"engine": run.config.engine.model_copy(update=drawn),
                "train": run.config.train.model_copy(update=precision)}  # fmt: skip
    run = replace(run, config=run.config.model_copy(update=sections))
    runtime, ranks = Runtime(project / "root"), ranks_of(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "free_host_bytes", lambda: free * MIB)
        before = refusal(lambda: refuse_start(run, runtime, lambda: local_hardware(run.config.engine, ranks)))
        assert before == refusal(lambda: list(dry_run(run, runtime, ranks)))


def assert_the_mean_document_counts(run, runtime, stats):
    """The dry run on GPUs and the line of a submission count it, as the plan does."""
    vocabulary, _, tokens, _ = corpus_figures(run, runtime)
    assert tokens == stats["train_tokens"] / stats["train_documents"]
    recipe, engine, ranks = run.config.recipe, run.config.engine, ranks_of(1)
    found = forecast(recipe, engine, vocabulary, ranks, document_tokens=tokens)
    assert found.in_words() != forecast(recipe, engine, vocabulary, ranks).in_words()
    lines = dry_run(run, runtime, ranks, Hardware(ranks, "cuda", gpus=1, device_bytes=80 << 30))
    assert f"forecast    {found.in_words()}" in lines
    section = with_site(run.config.slurm, run.folder).model_copy(update={"cluster": "h100"})
    nodes = read_cluster("h100", run.folder).with_ranks(section.tasks_per_node)
    of_plan = make_plan(run, PlanInputs(vocabulary, nodes, 1, correction=Correction(document_tokens=tokens)))
    assert submission_lines(run, vocabulary, section, None, tokens)[0] == summary(of_plan)


def test_a_corpus_gives_its_vocabulary_and_a_finished_training_is_not_checked(project, monkeypatch):
    run, runtime = load_run(project / "run.toml", []), Runtime(project / "root")
    three = replace(PLENTY, ranks=ranks_of(3))
    with pytest.raises(ConfigError, match="is not a multiple"):
        refuse_start(run, runtime, lambda: three)
    small = load_run(project / "run.toml", ["data.tokenizer.vocabulary_size=300", "data.encode.validation_share=0.5"])
    assert vocabulary_of(small, runtime)[0] == 300
    artifacts = corpus(run, runtime)
    monkeypatch.setattr(expectations, "build_expectation", lambda gate: pytest.fail("the audit comes next, or is made"))
    unknown = Gate(id="own.wrong", gx="expect_nothing", suite="documents", owner="data", why="the test wants it so")
    start.warn_of_expectations(replace(run, policy=run.policy.model_copy(update={"gate": (unknown,)})), runtime)
    assert vocabulary_of(run, runtime)[0] == artifacts["tokenizer"].stats["vocabulary_size"]
    assert vocabulary_of(small, runtime)[0] == 300  # the shards there belong to another run
    long = load_run(project / "run.toml", ["train.sequence_length=8192", "model.max_position_embeddings=8192"])
    assert_the_mean_document_counts(long, runtime, artifacts["encode"].stats)
    assert corpus_figures(small, runtime)[2] is None
    with pytest.raises(ConfigError, match="is not a multiple"):
        refuse_start(run, runtime, lambda: three)
    monkeypatch.setattr(pipeline, "launch", lambda *words, **named: pytest.fail("the ranks would take 20 s to refuse"))
    with pytest.raises(ConfigError, match="is not a multiple"):
        pipeline._launch(run, artifacts, runtime, 3, ())
    folder = training_folder(run, artifacts, runtime)
    folder.mkdir(parents=True)
    (folder / FILE_NAME).touch()
    refuse_start(run, runtime, lambda: pytest.fail("hardware is not looked up for a finished training"))
    other = load_run(project / "run.toml", ["train.steps=13"])
    with pytest.raises(ConfigError, match="is not a multiple"):
        refuse_start(other, runtime, lambda: three)


def test_a_separate_process_queries_torch_about_a_gpu(monkeypatch):
    code = """if __name__ == "__main__":
        import sys
        from governance.errors import PipelineError
        from assay import start_preflight as start
        from pretrain.config.training import EngineConfig
        from pretrain.distributed.process_group import Ranks
        start.may_have_gpu()
        start.may_have_gpu = lambda: True
        try:
            start.local_hardware(EngineConfig(device="cuda"), Ranks())
        except PipelineError as error:
            print(error)
        print(sorted({"torch", "deepspeed"} & sys.modules.keys()))"""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    output, imported = done.stdout.splitlines()
    assert "this machine shows no GPU to torch" in output
    assert imported == "[]"


def test_what_it_answers_is_what_a_rank_would_find():
    device = device_of(Ranks())
    found = start._ask_torch("auto", Ranks())
    expected = hardware_of(Ranks(), device)
    assert (found.device, found.capability) == (expected.device, expected.capability)
    assert found.host_bytes > 0


def test_only_known_values_are_queried_from_nodes():
    two = Ranks(0, 4, 0, 2)
    auto, cpu = EngineConfig(), EngineConfig(device="cpu")
    assert on_nodes(auto, two, 0, 0) == Hardware(two, "cpu")
    assert on_nodes(auto, two, 0, 8 * MIB) == Hardware(two, "cpu", device_bytes=4 * MIB, host_bytes=4 * MIB)
    gpus = Hardware(two, "cuda", gpus=2, device_bytes=LARGEST_GPU, host_bytes=4 * MIB)
    assert on_nodes(auto, two, 2, 8 * MIB) == gpus
    assert on_nodes(auto, two, 2, 0, 80 * MIB) == replace(gpus, device_bytes=80 * MIB, host_bytes=None)
    assert on_nodes(cpu, two, 2, 8 * MIB) == Hardware(two, "cpu", device_bytes=4 * MIB, host_bytes=4 * MIB)
    with pytest.raises(ConfigError, match=r"2 ranks on a node of 1 GPU"):
        on_nodes(auto, two, 1, 0)


def test_a_gpu_that_was_not_requested_from_the_cluster_is_reported(caplog):
    expected = Hardware(Ranks(), "cuda", device_bytes=LARGEST_GPU)
    assert on_nodes(EngineConfig(device="cuda"), Ranks(), 0, 0) == expected
    assert "slurm.gpus_per_node = 0" in caplog.text


def test_memory_that_nobody_knows_refuses_nothing(project):
    run = load_run(project / "run.toml", ["model.num_hidden_layers=4000"])
    unknown = replace(PLENTY, device_bytes=None, host_bytes=None)
    refuse_start(run, Runtime(project / "root"), lambda: unknown)
    with pytest.raises(PipelineError, match="does not fit"):
        refuse_start(run, Runtime(project / "root"), lambda: replace(PLENTY, device_bytes=MIB, host_bytes=MIB))
    on_gpu = Hardware(Ranks(), "cuda", host_bytes=MIB)
    with pytest.raises(PipelineError, match=r"may use an unknown amount on the device and 0\.0 GiB of the host"):
        refuse_start(run, Runtime(project / "root"), lambda: on_gpu)


def test_what_training_goes_on_from_may_be_gone_and_the_report_is_written(project, caplog):
    run = load_run(project / "run.toml", ["train.continue_from='checkpoint/0123456789abcdef'"])
    root = project / "root"
    attest = attest_with(run.journal(root), run.keyring, root)
    runtime = Runtime(root, hooks=Hooks(attest=attest))
    judge_corpus(run, corpus(run, runtime), runtime)
    assert write_report(run, runtime).is_file()
    assert "the report has no training" in caplog.text
    caplog.clear()
    weights_of(project / "weights", {"model_type": "t5"})
    assert write_report(load_run(project / "run.toml", ["train.initial_weights='weights'"]), runtime).is_file()
    assert "the report has no training: train.initial_weights: " in caplog.text


def weights_of(folder, config):
    """A folder of weights with a tensor that the model lacks."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"other": np.zeros(1, np.float32)}, folder / "model.safetensors")


@pytest.mark.slow
def test_a_separate_process_answers_and_refuses():
    """A preflight's question to torch and DeepSpeed, as a command asks it; other tests ask in their own process."""
    found = APART(start._ask_torch, "cpu", Ranks())
    expected = hardware_of(Ranks(), device_of(Ranks(), "cpu"))
    memory = {"device_bytes": 0, "host_bytes": 0}  # what is free changes
    assert replace(found, **memory) == replace(expected, **memory)
    assert found.host_bytes > 0
    with pytest.raises(ConfigError, match="zero_optimisation"):
        APART(start._pass, {"train_batch_size": 1, "zero_optimisation": {}})

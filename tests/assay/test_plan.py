"""`assay plan`: it accepts what a start accepts, its money and energy have bounds, and a record corrects it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.cli.main import main
from assay.config import load_run
from assay.planning.cluster import FOLDER, Cluster, ClusterFigure, read_cluster, shipped_clusters
from assay.planning.corrections import read_record
from assay.planning.costs import costs
from assay.planning.failures import best_interval, expected, wall_seconds
from assay.planning.layouts import fastest, layouts
from assay.planning.plan import Correction, PlanInputs, factors_of, make_plan, step_plan
from assay.planning.plan_budget import over_budget
from assay.planning.plan_page import lines, summary
from benchmarks.measures.training import plan_published
from governance.energy.band import Band
from governance.errors import ConfigError
from governance.gate.policy import EnergyBudget
from governance.manifest import Manifest, write_manifest
from pretrain.preflight.forecast import H100

CONFIGS = Path(__file__).parents[2] / "configs"
FIGURES = [name for name, field in Cluster.model_fields.items() if field.annotation is ClusterFigure]


@pytest.fixture
def planned(tmp_path, capsys):
    """`planned(preset, *words)`: exit status, JSON and the message of a plan."""

    def run(preset, *words):
        root = ["--root", str(tmp_path / "root")]
        status = main(["plan", str(CONFIGS / f"{preset}.toml"), *root, "--json", *words])
        said = capsys.readouterr()
        return status, json.loads(said.out), said.err

    return run


def the_run(preset="1b", *settings):
    return load_run(CONFIGS / f"{preset}.toml", settings, needs="model")


def plan_of(preset="1b", nodes=1, cluster="h100", correction=None, settings=()):
    run = the_run(preset, *settings)
    size = run.config.data.tokenizer.vocabulary_size
    return make_plan(run, PlanInputs(size, read_cluster(cluster), nodes, correction=correction or Correction()))


def test_there_is_one_roofline():
    assert read_cluster("h100").machine == H100
    assert shipped_clusters() == ["a100", "cpu", "h100", "h200", "mi300x"]


@pytest.mark.parametrize("name", shipped_clusters())
def test_each_figure_of_a_shipped_cluster_has_a_source(name):
    cluster = read_cluster(name)
    for figure in FIGURES:
        low, value, high = getattr(cluster, figure).band
        assert 0 < low <= value <= high
    assert cluster.gemm_tflops_2048.value < cluster.peak_tflops.value
    assert make_plan(the_run(), PlanInputs(50304, cluster, 2)).step.seconds > 0


@pytest.mark.parametrize("figure", FIGURES)
def test_a_missing_figure_is_named(tmp_path, figure):
    lines = (FOLDER / "h100.toml").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "mine.toml"
    path.write_text("\n".join(line for line in lines if not line.startswith(f"{figure} =")), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"mine.toml: 1 fault.*\n.*{figure}"):
        read_cluster(str(path))


def test_wrong_clusters_are_refused(planned, tmp_path):
    assert "the shipped ones are: a100, cpu" in planned("1b", "--cluster", "h1000")[2]
    status, _, err = planned("1b")
    assert (status, "name the nodes: a100, cpu, h100" in err) == (78, True)
    text = (FOLDER / "h100.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("pue = { value = 1.2, low = 1.1", "pue = { value = 1.2, low = 1.3"), encoding="utf-8")
    status, _, err = planned("1b", "--cluster", str(path))
    assert (status, "low 1.3, value 1.2 and high 1.58 must go upwards" in err) == (78, True)
    for figure, written, said in (
        ("pue", "1.2", 'has no source; write { value = 1.2, source = "..." }'),
        ("pue", '{ value = 1.2, source = " " }', "names no source"),
        ("pue", '{ value = 1.2, low = 0.8, source = "ours" }', "pue: 0.8 is below 1"),
        ("memory_gib", '{ value = 1e300, source = "ours" }', "must be at most 1000000000000000"),
        ("price_hour", '{ value = 2, high = 1e300, source = "ours" }', "must be at most 1000000000000000"),
        ("gemm_tflops_768", '{ value = 600, high = 1000, source = "ours" }', "1000 is above peak_tflops = 989.4"),
    ):
        lines = [line for line in text.splitlines() if not line.startswith(f"{figure} =")]
        path.write_text("\n".join([*lines, f"{figure} = {written}"]), encoding="utf-8")
        status, _, err = planned("1b", "--cluster", str(path))
        assert (status, said in err) == (78, True), err
    for cluster, has, takes, ranks in (("h100", 8, 16, 0), ("h100", 8, 16, 8), ("cpu", 0, 8, 0)):
        requested = [f"slurm.cluster='{cluster}'", f"slurm.gpus_per_node={takes}", f"slurm.processes_per_node={ranks}"]
        status, _, err = planned("1b", *(word for setting in requested for word in ("--set", setting)))
        assert (status, f"has {has} GPU(s), and the job takes {takes}" in err) == (78, True), err
    status, _, err = planned("1b", "--cluster", "cpu", "--set", 'engine.device="cuda"')
    assert (status, "compute on 'cpu'" in err) == (78, True)


@pytest.mark.parametrize(
    ("preset", "nodes", "settings"),
    [
        ("7b", 8, []),
        ("70b", 64, []),
        ("1b", 1, []),
        ("70b", 1, []),
        ("70b", 8, ["engine.zero_stage=1", "engine.hpz_partition_size=1"]),
        ("7b", 8, ["engine.micro_batch_size=16"]),
        ("7b", 8, ["engine.zero_stage=2"]),
        ("1b", 1, ["engine.tensor_parallel_size=3"]),
    ],
)
def test_a_plan_is_accepted_or_refused_as_a_dry_run_is(planned, tmp_path, capsys, preset, nodes, settings):
    changes = [word for setting in settings for word in ("--set", setting)]
    status, found, err = planned(preset, "--cluster", "h100", "--nodes", str(nodes), *changes)
    memory = read_cluster("h100").memory_gib.value
    words = ["--dry-run", "--device", "cuda", "--gpu-memory", f"{memory}GiB", "--nproc", "8", "--ranks", str(8 * nodes)]
    path = str(CONFIGS / f"{preset}.toml")
    started = main(["train", path, "--root", str(tmp_path / "root"), *words, *changes])
    said = capsys.readouterr().err
    assert status == started

    def needed(text):
        return re.search(r"a rank needs about (.*), and may use", text)[1]

    if status == 0:
        assert not found["refused"]
    elif "does not fit" in said:
        assert needed(err) == needed(said)
        assert re.search(r"It would fit|would do|No setting", err)
    else:
        assert err.partition("ERROR")[2].strip() == said.partition("ERROR")[2].strip()
    if "usd" not in found:  # sections that no machine could start are refused as they are read
        assert status == 78
        return
    for name in ("usd", "kwh", "kwh_building", "kg_co2e", "litres", "days"):
        low, value, high = (found[name][part] for part in ("low", "value", "high"))
        assert 0 < low < value < high


def test_a_model_that_fits_nowhere_is_refused(planned, tmp_path):
    huge = [
        "--set",
        "model.hidden_size=65536",
        "--set",
        "model.intermediate_size=262144",
        "--set",
        "engine.compile=false",
    ]
    huge += ["--set", "train.sequence_length=4096", "--html", str(tmp_path / "plan.html")]
    status, _, err = planned("7b", "--cluster", "h100", "--nodes", "1", *huge)
    assert (status, "this model does not fit" in err) == (1, True)
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    for said in (err, page.partition("A start would be refused: ")[2]):
        assert re.search(r"No setting makes it fit", said)


def test_a_budget_that_is_exceeded_is_named(planned, tmp_path, capsys):
    policy = (CONFIGS / "policy.toml").read_text(encoding="utf-8")
    path = tmp_path / "7b.toml"
    path.write_text(f'base = "{CONFIGS}/7b.toml"\n', encoding="utf-8")
    _, found, _ = planned("7b", "--cluster", "h100")
    page = tmp_path / "plan.html"
    words = ["plan", str(path), "--root", str(tmp_path / "root"), "--cluster", "h100", "--html", str(page)]
    between = (found["kwh"]["value"] + found["kwh"]["high"]) / 2
    for limit, status, said in (
        (found["kwh"]["value"] / 2, 71, "so it would be stopped before its end"),
        (between, 0, "so it may be stopped before its end"),
        (2 * found["kwh"]["high"], 0, ""),
    ):
        (tmp_path / "policy.toml").write_text(f"{policy}\n[energy_budget]\nkilowatt_hours = {limit:.3f}\n")
        assert main(words) == status
        output = capsys.readouterr()
        assert said in output.out + output.err
        assert ("energy budget" in output.out + output.err) == bool(said)
        assert (">budget</th>" in page.read_text(encoding="utf-8")) == bool(said)


def test_a_plan_counts_the_steps_after_those_of_the_checkpoint_that_it_continues(planned, tmp_path):
    """The parent's steps cost nothing here; one that has made them all leaves nothing to plan."""
    root, steps = tmp_path / "root", the_run().config.train.steps
    continued = ["--cluster", "h100", "--set", "train.continue_from='checkpoint/cccccccccccccccc'"]
    missing = planned("1b", *continued)[1]  # an earlier job may still make it
    whole = planned("1b", "--cluster", "h100")[1]
    assert missing["usd"] == whole["usd"]
    for made in (steps - steps // 4, steps):
        values = {"inputs": (), "outputs": (), "stats": {}, "run": {}}
        write_manifest(Manifest(stage="checkpoint", version=1, key="c" * 64, config={"step": made}, **values), root)
        status, plan, said = planned("1b", *continued)
        if made == steps:
            assert status == 78
            assert f"has made {steps} steps" in said
        else:
            assert plan["usd"]["value"] == pytest.approx(whole["usd"]["value"] / 4, rel=0.01)
            assert any(f"after the {made:,} of train.continue_from" in line for line in plan["plan"])


def test_times_of_another_precision_are_said_to_be_those_of_bf16(planned):
    status, found, _ = planned("1b", "--cluster", "h100", "--set", "train.precision='fp32'")
    assert status == 0
    assert "those of bf16; what train.precision = 'fp32' adds is not known" in found["unlike"]
    assert found["unlike"] in found["plan"][-1]
    assert planned("1b", "--cluster", "h100")[1]["unlike"] == ""
    moved = ("--set", "engine.offload_optimizer='cpu'")
    said = "those of bf16 without offload; what engine.offload_optimizer = 'cpu' adds is not known"
    assert said in planned("1b", "--cluster", "h100", *moved)[1]["unlike"]


hours = st.floats(min_value=1.0, max_value=1e4)


@given(mtbf=hours, stall=st.floats(min_value=0.001, max_value=0.02), restart=st.floats(min_value=0.0, max_value=0.5))
def test_the_best_interval_loses_least(mtbf, stall, restart):
    work = 1e5
    best = best_interval(stall, mtbf)
    least = wall_seconds(work, best, stall, restart, mtbf)
    assert work < least
    for factor in (0.25, 0.5, 0.8, 1.25, 2, 4):
        assert least <= wall_seconds(work, best * factor, stall, restart, mtbf) * 1.0005


@given(mtbf=hours, interval=st.floats(min_value=0.1, max_value=10.0), stall=st.floats(min_value=0.0, max_value=0.1))
def test_fewer_failures_cost_less(mtbf, interval, stall):
    rare, often = (wall_seconds(1e4, interval, stall, 0.2, mtbf * factor) for factor in (10, 1))
    assert 1e4 * (1 + stall / interval) <= rare * (1 + 1e-9) <= often * (1 + 1e-9)


def test_the_closed_form_agrees_with_a_simulation():
    work, interval, stall, restart, mtbf = 400.0, 2.0, 0.05, 0.3, 9.0
    draws = np.random.default_rng(7)

    def run():
        time, done = 0.0, 0.0
        fails = draws.exponential(mtbf)
        while done < work:
            length = interval + stall
            if fails >= length:
                fails, time, done = fails - length, time + length, done + interval
                continue
            time += fails
            while (fails := draws.exponential(mtbf)) < restart:  # a restart can fail too
                time += fails
            time, fails = time + restart, fails - restart
        return time

    found = np.mean([run() for _ in range(300)])
    assert found == pytest.approx(wall_seconds(work, interval, stall, restart, mtbf), rel=0.02)


@given(nodes=st.integers(1, 1000), seconds=st.floats(min_value=1.0, max_value=1e8))
def test_costs_have_bounds_and_grow_with_nodes_and_time(nodes, seconds):
    cluster, factors = read_cluster("h100"), factors_of(the_run())
    wall = Band(0.8 * seconds, seconds, 1.25 * seconds)
    found, more = (costs(cluster, factors, count, wall) for count in (nodes, 2 * nodes))
    for name, band in found.items():
        assert 0 < band.low <= band.value <= band.high
        assert more[name].value == pytest.approx(2 * band.value)
    assert found["usd"].value == pytest.approx(nodes * 8 * seconds / 3600 * cluster.price_hour.value)
    assert found["kwh_building"].value == pytest.approx(found["kwh"].value * cluster.pue.value)
    spare = costs(cluster, factors, nodes, wall, spare_nodes=nodes)
    assert (spare["usd"], spare["kwh"]) == (more["usd"], found["kwh"])


def test_a_plan_pays_for_spare_nodes():
    run, cluster = the_run(), read_cluster("h100")
    found = make_plan(run, PlanInputs(50304, cluster, 4, spare_nodes=1))
    shown = "\n".join([*lines(found), summary(found)])
    assert found.costs["usd"].value == pytest.approx(
        1.25 * make_plan(run, PlanInputs(50304, cluster, 4)).costs["usd"].value
    )
    assert "1 spare node(s) included" in shown
    assert "4 node(s) and 1 spare, MFU" in shown


@given(data=st.data())
def test_the_bounds_hold_the_plan_at_every_figure_within_its_own_bounds(data):
    """The slowest network that the cluster file allows is within the plan's bounds, too."""
    cluster = read_cluster("h100")
    bounds = {name: getattr(cluster, name).bounds for name in FIGURES}
    drawn = {name: data.draw(st.floats(low, high), label=name) for name, (low, _, high) in bounds.items() if low < high}
    changes = {name: ClusterFigure(value=value, source="drawn") for name, value in drawn.items()}
    changed = PlanInputs(32000, cluster.model_copy(update=changes), 8)
    whole, one = (make_plan(the_run("7b"), inputs) for inputs in (PlanInputs(32000, cluster, 8), changed))
    for band, value in [
        (whole.wall, one.wall.value),
        *((whole.costs[name], one.costs[name].value) for name in one.costs),
    ]:
        assert band.low <= value <= band.high


def test_factors_of_the_run_go_first():
    settings = ['energy.factors.pue={value=1.05, source="our own", year=2026}']
    plan = plan_of(settings=settings)
    assert plan.costs["kwh_building"].value == pytest.approx(1.05 * plan.costs["kwh"].value)
    assert "; an unknown amount of CO2e; " in "\n".join(lines(plan_of(settings=["energy.factors.defaults=false"])))


@pytest.mark.parametrize(("interval", "stall"), [(10.0, 7.0), (16.0, 1.0), (100.0, 1.0)])
def test_a_save_waits_until_the_one_before_is_durable(interval, stall):
    """With a save every 10 s that takes 16 to write, a run lost as little as without the wait."""
    found = expected(1e6, interval, 1.0, 16.0, 600.0, 1e12, 1)
    assert found.stall == stall
    assert found.wall == pytest.approx(1e6 * (1 + stall / interval), rel=1e-3)
    assert found.best >= 16.0


def test_a_layout_that_fits_goes_before_one_that_does_not():
    run, cluster = the_run("7b"), read_cluster("h100")
    found = layouts(run, PlanInputs(32000, cluster, 8))
    assert {one.nodes for one in found} == {2, 4, 8, 16, 32}
    for best in fastest(found):
        alike = [one for one in found if (one.nodes, one.engine.zero_stage) == (best.nodes, best.engine.zero_stage)]
        roomy = [one for one in alike if not one.refusal and not one.tight]
        assert not roomy or best.seconds == min(one.seconds for one in roomy)
    memory = {(one.engine.zero_stage, one.engine.micro_batch_size): one.memory.device_bytes
              for one in found if one.nodes == 8}  # fmt: skip
    assert memory[3, 1] < memory[3, 2] < memory[3, 4]
    assert memory[3, 1] < memory[2, 1] < memory[1, 1]


def record(folder, plan, ratio, *, steps=10, device="cuda", watts=None, **start):
    """The record of a training that took `ratio` of the plan's time a step, in the mean of its queued steps."""
    folder.mkdir(parents=True)
    step, lines = plan.step, [{"event": "start", "attempt": 1, "world_size": plan.step.ranks, **start}]
    passed = 0.0
    for number in range(steps):
        queued = 1 if device == "cpu" else 0.2 if number % 4 else 3.4
        seconds = step.seconds * ratio * (5 if number < 2 else queued)
        passed += seconds
        lines.append(
            {
                "event": "step", "step": number + 1, "seconds": seconds, "tokens_per_second": step.tokens / seconds,
                "memory_peak": 1.2 * step.memory.device_bytes,
                "memory_reserved": 1 if device == "cuda" else None,
                "joules": None if watts is None else watts * passed,
            }
        )  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.4])
def test_a_record_corrects_the_plan(planned, tmp_path, ratio):
    before = plan_of("1b", 1)
    record(tmp_path / "run" / "train" / "k", before, ratio, watts=5000.0)
    _, found, _ = planned("1b", "--cluster", "h100", "--nodes", "2", "--from", str(tmp_path / "run"))
    assert found["step_seconds"] == pytest.approx(ratio * plan_of("1b", 2).step.seconds)
    assert f"{ratio:.2f} times the predicted time, 1.20 times the memory" in found["corrected_by"]
    low, value, high = (found["days"][part] for part in ("low", "value", "high"))
    hours = found["days"]["value"] * 24
    assert found["kwh"]["value"] == pytest.approx(2 * 5.0 * hours)
    assert high / low < 1.25 < plan_of("1b", 2).wall.high / plan_of("1b", 2).wall.low
    assert low < value < high


def test_a_record_is_compared_with_the_prediction_of_its_own_layout(planned, tmp_path):
    other = ("engine.zero_stage=2", "engine.activation_checkpointing='full'", "engine.micro_batch_size=2")
    layout = the_run("1b", *other).settings.engine.layout
    record(tmp_path / "run", plan_of("1b", 1, settings=other), 1.0, layout=layout, parameters=1_310_000_000)
    _, found, _ = planned("1b", "--cluster", "h100", "--from", str(tmp_path / "run"))
    assert "1.00 times the predicted time, 1.20 times the memory" in found["corrected_by"]
    moved = ("--set", "engine.offload_optimizer='cpu'")
    status, _, err = planned("1b", "--cluster", "h100", "--from", str(tmp_path / "run"), *moved)
    assert (status, "that run has offload_optimizer = 'none'" in err) == (78, True), err
    status, _, err = planned("7b", "--cluster", "h100", "--from", str(tmp_path / "run"))
    assert (status, "not finished and has 1,310,000,000 parameters" in err) == (78, True), err


@pytest.mark.parametrize(
    "layout",
    [
        "x", [1], {"nope": 3}, {"device": "cpu"}, {"micro_batch_size": 0}, {"micro_batch_size": -4}, {"zero_stage": 7},
        {"tensor_parallel_size": 3}, {"sequence_parallel_size": 64},
    ],
)  # fmt: skip
def test_a_layout_that_no_start_accepts_corrects_no_plan(planned, tmp_path, layout):
    record(tmp_path / "run", plan_of("1b", 1), 1.0, layout=layout)
    status, _, err = planned("1b", "--cluster", "h100", "--from", str(tmp_path / "run"))
    assert (status, "metrics.jsonl" in err) == (78, True), err


def test_a_finished_run_without_a_recorded_layout_has_that_of_its_manifest(planned, tmp_path):
    other = ("engine.zero_stage=3", "engine.micro_batch_size=1")
    record(tmp_path / "run", plan_of("1b", 1, settings=other), 1.0)
    stated = {
        "config": the_run("1b").config.recipe.model_dump(mode="json"), "stats": {"vocabulary_size": 50304},
        "run": {"execution": {"zero_stage": 3, "micro_batch_size": 1}},
    }  # fmt: skip
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(stated), encoding="utf-8")
    _, found, _ = planned("1b", "--cluster", "h100", "--from", str(tmp_path / "run"))
    assert re.search(r"(0\.99|1\.0\d) times the predicted time, 1\.\d+ times the memory", found["corrected_by"])


def test_a_run_of_quite_another_size_narrows_no_bounds(planned, tmp_path):
    small = ["model.hidden_size=256", "model.intermediate_size=512", "model.num_hidden_layers=2"]
    record(tmp_path / "run", plan_of("1b", 1, settings=small), 50.0)
    stated = {
        "config": the_run("1b", *small).config.recipe.model_dump(mode="json"),
        "stats": {"vocabulary_size": 50304},
    }
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(stated), encoding="utf-8")
    _, found, _ = planned("1b", "--cluster", "h100", "--from", str(tmp_path / "run"))
    assert "50.00 times the predicted time" in found["corrected_by"]
    assert re.search(r"times fewer FLOPs than this run's, .* the bounds stay wide", found["corrected_by"])
    assert found["days"]["high"] / found["days"]["low"] > 1.25


def test_a_run_that_failures_hold_up_is_written_without_endless_digits():
    rare = ("checkpoint.every_steps=329000",)
    shown = "\n".join(lines(plan_of("70b", 64, settings=rare)))
    assert not re.search(r"\d,\d{3},\d{3},\d{3},\d{3}", shown), shown
    nodes = read_cluster("h100")
    weak = nodes.model_copy(update={"node_mtbf_hours": ClusterFigure(value=0.01, source="drawn")})
    never = make_plan(the_run("7b"), PlanInputs(32000, weak, 8))
    assert "duration    endless (" in "\n".join(lines(never))


def test_the_power_of_fewer_gpus_says_nothing_about_whole_nodes(planned, tmp_path):
    one = replace(plan_of("1b", 1), step=step_plan_on("h100", 1))
    record(tmp_path / "run" / "train" / "k", one, 1.0, watts=900.0)
    _, found, _ = planned("1b", "--cluster", "h100", "--from", str(tmp_path / "run"))
    assert found["kwh"]["value"] == pytest.approx(7.75 * found["days"]["value"] * 24)
    assert "W a node" not in found["corrected_by"]


def step_plan_on(cluster, ranks):
    run = the_run("1b")
    nodes = read_cluster(cluster).with_ranks(ranks)
    return step_plan(run.config.recipe, run.settings, PlanInputs(50304, nodes, 1))


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_the_processes_of_a_cpu_node_share_it(processes):
    """Processes share the memory, the energy and the price of their node, however many they are."""
    settings = ("engine.micro_batch_size=8", "engine.compile=false")

    def node(cluster):
        found = make_plan(the_run("1b", *settings), PlanInputs(50304, cluster, 1))
        memory = found.step.ranks * found.step.hardware.device_bytes
        return (*found.costs["usd"], *found.costs["kwh"], found.step.tokens / found.step.seconds, memory)

    whole = read_cluster("cpu")
    assert node(whole.with_ranks(processes)) == pytest.approx(node(whole), rel=0.03)


def test_a_small_budget_is_compared_in_figures_that_differ():
    plan = replace(plan_of(), costs={"kwh": Band(0.2, 0.34, 0.6)})
    over = over_budget(plan, EnergyBudget(kilowatt_hours=0.3))
    assert "allows 0.3 kWh, and the plan's training takes 0.34 kWh (up to 0.6)" in over.words


def test_some_of_a_nodes_gpus_draw_their_share():
    eight = read_cluster("h100")
    half = eight.with_ranks(4)
    assert (half.load_node_watts.value, half.load_node_watts.high) == (3875, 4240)
    assert half.with_ranks(8) == eight.model_copy(update={"load_node_watts": half.load_node_watts.times(2)})


def test_the_power_of_a_record_is_that_of_its_whole_time(tmp_path):
    """The meter counts validations and saves, which are in no step; the time of tasks is not recorded."""
    lines, passed = [{"event": "start", "attempt": 1, "world_size": 1}], 0.0
    for number in range(1, 9):
        passed += 2.0
        numbers = {"seconds": 2.0, "tokens_per_second": 1.0, "memory_reserved": None, "joules": 300.0 * passed}
        lines.append({"event": "step", "step": number, **numbers})
        if number == 4:
            lines.append({"event": "validation", "step": 4, "seconds": 50.0})
            lines.append({"event": "save", "step": 4, "seconds": 7.0})
            passed += 57.0
        if number == 6:
            lines.append({"event": "task", "step": 6})
            passed += 1000.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_record(tmp_path).watts == pytest.approx(300.0)


def test_a_record_that_says_nothing_is_refused(planned, tmp_path):
    plan = plan_of("1b", 1)
    record(tmp_path / "short", plan, 1.0, steps=4)
    record(tmp_path / "speedless", plan, 1.0)
    lines = (tmp_path / "speedless" / "metrics.jsonl").read_text(encoding="utf-8")
    (tmp_path / "speedless" / "metrics.jsonl").write_text(re.sub('second": [0-9.]+', 'second": null', lines))
    record(tmp_path / "cpu", plan, 1.0, device="cpu")
    record(tmp_path / "fp32", plan, 1.0)
    recipe = the_run("1b", "train.precision='fp32'").config.recipe.model_dump(mode="json")
    run = {"execution": {"zero_stage": 1, "micro_batch_size": 4}}
    stated = {"config": recipe, "stats": {"vocabulary_size": 50304}, "run": run}
    (tmp_path / "fp32" / "manifest.json").write_text(json.dumps(stated), encoding="utf-8")
    for folder, status, said in (
        ("none", 66, "no metrics.jsonl there or in a train folder below"),
        ("short", 78, "too few to correct a plan"),
        ("speedless", 78, "too few to correct a plan"),
        ("cpu", 78, "that run computed on cpu"),
        ("fp32", 78, "that run computed in fp32, and this one is to in bf16"),
    ):
        got, _, err = planned("1b", "--cluster", "h100", "--from", str(tmp_path / folder))
        assert (got, said in err) == (status, True), err


@pytest.mark.parametrize(
    ("steps", "unit", "tokens", "energy"),
    [
        (10**2, "seconds", "204,800 tokens", "Wh"),
        (10**5, "minutes", "205 million tokens", "Wh"),
        (10**7, "hours", "20.5 billion tokens", "kWh"),
        (10**8, "days", "205 billion tokens", "kWh"),
    ],
)
def test_figures_are_written_in_the_unit_that_fits_them(tmp_path, capsys, steps, unit, tokens, energy):
    words = ["plan", str(CONFIGS / "quickstart.toml"), "--root", str(tmp_path / "root"), "--cluster", "cpu"]
    assert main([*words, "--set", "engine.micro_batch_size=8", "--set", f"train.steps={steps}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"duration    [\d.]+ \([\d.]+ to [\d.,]+\) {unit} for {tokens} in ", shown), shown
    assert f" {unit} " in shown.partition("rows per pass")[2]
    assert re.search(rf"energy      [\d.]+ \([\d.]+ to [\d.]+\) {energy} at the nodes", shown), shown


def test_the_page_draws_the_layouts_and_names_each_source(tmp_path):
    page = tmp_path / "plan.html"
    words = ["plan", str(CONFIGS / "7b.toml"), "--root", str(tmp_path / "root"), "--cluster", "h100"]
    assert main([*words, "--html", str(page), "--set", "engine.offload_optimizer='cpu'"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    assert ">left out</th>" in text
    assert text.count(">8 nodes</th>") == 4  # each row's head says what it counts, on a telephone too
    assert not re.search(r"(src|href)=.http", text)
    for figure in FIGURES:
        assert figure in text
    assert "arXiv:2506.14551" in text
    assert ">989.4<" in text
    assert ">320 (45 to 400)<" in text
    assert text.count("stage 0 refused: engine.zero_stage = 0 with train.precision") == 1


def test_a_save_writes_the_state_twice_and_keeps_the_newest_shards():
    """Each of several ranks writes its shard, then the canonical files; the shards stay if they are switched on."""
    one, eight = (plan_of(nodes=nodes, settings=["slurm.gpus_per_node=1"]).checkpoint for nodes in (1, 8))
    without = plan_of(nodes=8, settings=["slurm.gpus_per_node=1", "checkpoint.native=false"]).checkpoint
    assert one["bytes"] == eight["bytes"] == 12 * 1_317_373_952  # the weights, and AdamW's two moments, in fp32
    assert eight["kept_bytes"] - without["kept_bytes"] == eight["bytes"]
    assert eight["write_seconds"] == without["write_seconds"] == pytest.approx(2 * eight["read_seconds"])


def test_the_factors_of_a_gpu_are_fitted_to_the_published_speeds():
    """Also of pipelined runs, which leave out the communication between blocks."""
    goals = {goal.name: goal for goal in plan_published.goals()}
    assert goals["plan.published.shipped_factors_off"].holds

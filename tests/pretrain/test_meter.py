from __future__ import annotations

import math
import mmap
import time
from types import SimpleNamespace

import pytest
import torch

from governance.energy.attribution import add, added_by, by_checkpoint, settle, wasted_by_cause
from governance.energy.ledger import read_ledger
from governance.energy.meters import EnergyConfig, meter
from governance.phases import EVALUATION
from pretrain import loop
from pretrain import step_meter as meter_module
from pretrain.config.training import EngineConfig
from pretrain.distributed.process_group import Ranks
from pretrain.metrics.peak_flops import Peak
from pretrain.step_meter import (
    EnergyPerToken,
    StepMeter,
    compiled_graphs,
    data_position,
    losses_by_origin,
    memory,
    step_note,
)
from tests.pretrain.small_models import TINY


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def opened(monkeypatch):
    """A meter of two ranks on a clock that the test sets, with its records."""
    sheet, product = Peak(1e9, "the sheet"), Peak(5e8, "the product")
    monkeypatch.setattr(meter_module, "data_sheet", lambda name, arithmetic: sheet)
    monkeypatch.setattr(meter_module, "measured_product", lambda device, arithmetic: product)
    samples = iter([6e8, 4e8])
    monkeypatch.setattr(meter_module, "sampled_product", lambda arithmetic: next(samples))
    monkeypatch.setattr(meter_module, "add_up", lambda values, device: [2 * value for value in values])
    recorded = []
    job = SimpleNamespace(
        recipe=SimpleNamespace(
            model=TINY,
            train=SimpleNamespace(sequence_length=32, precision="fp32", steps=9, freezes=False, sides=(0.5, 0.5)),
        ),
        train_rows=SimpleNamespace(vocabulary_size=200, count=10),
        ranks=Ranks(0, 2, 0, 2),
        settings=SimpleNamespace(engine=EngineConfig(zero_stage=2, compile=True, step_timeout_seconds=9.0)),
        device=torch.device("cpu"),
        energy={"joules": None, "method": "unknown", "running": {"joules": None, "method": "RAPL"}},
        record=lambda event, step, **values: recorded.append((event, step, values)),
    )
    clock = Clock()
    return StepMeter(job, 3, 24, clock), clock, job, recorded


def test_start_names_both_peaks_of_all_ranks(opened):
    *_, recorded = opened
    [(event, step, values)] = recorded
    assert (event, step) == ("start", 3)
    assert (values["peak_flops_per_second"], values["peak_source"]) == (2e9, "the sheet")
    assert (values["gemm_flops_per_second"], values["gemm_source"]) == (1e9, "the product")
    assert values["energy_method"] == "RAPL"
    assert values["layout"] == {"zero_stage": 2, "compile": True}


def test_a_peak_that_one_rank_does_not_know_is_unknown(opened, monkeypatch):
    _, _, job, _ = opened
    monkeypatch.setattr(meter_module, "add_up", lambda values, device: [value + 1 for value in values])
    monkeypatch.setattr(meter_module, "data_sheet", lambda name, arithmetic: Peak(None, "unknown"))
    sheet, product = meter_module._peaks(job)
    assert sheet.flops_per_second is None
    assert product.flops_per_second is not None


def test_a_step_is_its_seconds_without_what_was_set_aside(opened):
    meter, clock, _, recorded = opened
    flops = recorded[0][2]["flops_per_token"]
    with meter.waiting():
        clock.now += 0.5
    clock.now += 1.5
    first = meter.step(4, 128, 100)
    assert first["seconds"] == pytest.approx(2.0)
    assert first["seconds_data"] == pytest.approx(0.5)
    assert first["tokens_per_second"] == pytest.approx(64.0)
    assert first["targets_per_second"] == pytest.approx(50.0)
    assert first["mfu"] == pytest.approx(64.0 * flops / 2e9)
    assert first["mfu_gemm"] == pytest.approx(64.0 * flops / 1e9)

    with meter.aside(EVALUATION) as seconds:
        clock.now += 10.0
        assert seconds() == pytest.approx(10.0)
    clock.now += 1.0
    second = meter.step(8, 256, 250)  # the batch grew
    assert second["seconds"] == pytest.approx(1.0)
    assert second["seconds_data"] == 0.0
    assert second["tokens_per_second"] == pytest.approx(256.0)
    assert clock.now - 100.0 == pytest.approx(first["seconds"] + second["seconds"] + 10.0)  # nothing is lost


def test_a_product_measured_on_a_busy_machine_is_sampled_again_within_half_a_percent(opened):
    """A step that is faster has no share, and the line says why; then the best sample of all ranks counts."""
    meter, clock, _, recorded = opened
    flops = recorded[0][2]["flops_per_token"]
    clock.now += 9.0
    assert not meter.wants_sample()  # a sample takes 50 ms
    clock.now += 1.0
    assert meter.wants_sample()
    first = meter.step(4, 1.1e10 / flops, 100, sample=True)  # 10 s at 1.1 times the product
    assert (first["mfu_gemm"], first["gemm_flops_per_second"]) == (None, 1e9)
    note = step_note({"loss": 3.21, **first, "mfu": None})
    assert note.endswith("tokens/s, faster than the GEMM, which was measured on a busy machine")
    clock.now += 1.0
    second = meter.step(4, 1.1e9 / flops, 100, sample=True)
    assert second["mfu_gemm"] == pytest.approx(1.1 / 1.2)
    clock.now += 1.0
    third = meter.step(4, 1.1e9 / flops, 100)
    assert third["gemm_flops_per_second"] == second["gemm_flops_per_second"] == 1.2e9  # 4e8 of each rank was less
    meter._sampled = meter._seconds_a_sample = 0.05
    assert not meter.wants_sample()
    clock.now += 10.0
    assert meter.wants_sample()


def test_the_position_goes_on_where_the_run_was(opened):
    meter, clock, _, _ = opened
    clock.now += 1.0
    values = meter.step(4, 128, 100)
    assert (values["rows"], values["rows_read"], values["epoch"]) == (4, 28, 2)
    assert values["epoch_share"] == pytest.approx(0.8)


def test_an_epoch_ends_exactly():
    assert data_position(0, 7) == {"rows_read": 0, "epoch": 0, "epoch_share": 0.0}
    assert data_position(14, 7) == {"rows_read": 14, "epoch": 2, "epoch_share": 0.0}


def test_energy_is_per_token_between_readings():
    energy = {"running": {"joules": 40.0}}
    count = EnergyPerToken(energy, share=0.5)  # two nodes: this one's meter, half of the tokens
    assert count.after(100) == {"joules": 40.0, "joules_per_token": None}  # read before the first step
    energy["running"] = {"joules": 60.0}
    assert count.after(100)["joules_per_token"] is None  # the first reading of these steps only begins the count
    assert count.after(100)["joules_per_token"] is None
    energy["running"] = {"joules": 160.0}
    assert count.after(100) == {"joules": 160.0, "joules_per_token": pytest.approx(100.0 / (200 * 0.5))}
    assert count.after(100)["joules_per_token"] == pytest.approx(1.0)  # until the next reading
    energy["running"] = {"joules": 260.0}
    assert count.after(100)["joules_per_token"] == pytest.approx(200.0 / (400 * 0.5))


@pytest.mark.parametrize("energy", [{"joules": None}, {"running": {"joules": None}}])
def test_energy_without_a_meter_is_unknown(energy):
    count = EnergyPerToken(energy, share=1.0)
    for _ in range(3):
        assert count.after(10) == {"joules": None, "joules_per_token": None}


def test_memory_is_resident_and_its_peak_stays():
    before = memory(torch.device("cpu"))
    held = mmap.mmap(-1, 64 << 20)  # memory from malloc may be resident already, freed by another test
    held.write(b"\1" * len(held))
    during = memory(torch.device("cpu"))
    assert during["memory"] >= before["memory"] + (48 << 20)
    held.close()
    after = memory(torch.device("cpu"))
    assert after["memory"] < during["memory"]
    assert after["memory_peak"] >= during["memory"] - (2 << 20)  # the kernel counts pages in batches per core
    assert after["memory_reserved"] is None


def test_memory_that_the_kernel_does_not_report_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(meter_module, "_STATUS", str(tmp_path / "none"))
    assert set(memory(torch.device("cpu")).values()) == {None}


def test_memory_of_a_card_is_the_allocators(monkeypatch):
    stats = {
        "allocated_bytes": {"all": {"current": 1, "peak": 2}},
        "reserved_bytes": {"all": {"current": 3, "peak": 4}},
    }
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda device: stats)
    assert memory(torch.device("cuda", 0)) == {"memory": 1, "memory_peak": 2, "memory_reserved": 3}


def test_an_origin_without_tokens_in_a_step_has_no_loss():
    found = losses_by_origin(("a/de", "a/en", "b/en"), (6.0, 0.0, math.nan), (3, 0, 2))
    assert list(found) == ["a/de", "b/en"]
    assert found["a/de"] == 2.0
    assert math.isnan(found["b/en"])


def test_the_note_says_which_share_it_is():
    values = {"loss": 3.21, "tokens_per_second": 12345.6, "mfu": 0.4, "mfu_gemm": 0.5}
    assert step_note(values) == "loss 3.210, 12,346 tokens/s, 40.0% MFU"
    assert step_note(values | {"mfu": None}) == "loss 3.210, 12,346 tokens/s, 50.0% of GEMM"
    assert step_note(values | {"mfu": None, "mfu_gemm": None}) == "loss 3.210, 12,346 tokens/s"
    assert step_note({"loss": float("nan")}) == "loss nan"


def test_a_training_records_its_phases_in_the_ledger_and_a_restart_up_to_its_first_step_is_waste(
    tmp_path, monkeypatch, run_training
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    ledger, plain = tmp_path / "energy.jsonl", loop.rate_factor

    def slowly(step, *more):  # two checkpoints that become durable within one interval would share it
        while step == 5 and read_ledger(ledger)[0].samples[-1].marks.get("checkpoint") != 4:
            time.sleep(0.02)
        if step == 5 and len(read_ledger(ledger)) == 1:
            raise KeyError(step)
        return plain(step, *more)

    monkeypatch.setattr(loop, "rate_factor", slowly)
    measured = meter(EnergyConfig(sample_seconds=0.1), ledger)
    with pytest.raises(KeyError):
        run_training(tmp_path, meter=measured, steps=6, asynchronous=False)
    made = run_training(tmp_path, meter=measured, steps=6, asynchronous=False)
    pieces = settle(read_ledger(ledger))
    total, phases = add(pieces), added_by("phase", pieces)
    assert {"start-up", "compute", "communication", "checkpoint", "evaluation", "idle"} <= set(phases)
    assert sum(row.measured for row in phases.values()) == total.measured == total.surviving + total.wasted
    first, second = (add(part for part in pieces if part.interval == one.id) for one in read_ledger(ledger))
    assert second.measured == round(1000 * made.run["energy"]["joules"])
    assert 0 < phases["start-up"].surviving < first.measured
    assert wasted_by_cause(pieces) == {"KeyError": first.wasted, "restart": phases["start-up"].wasted}
    assert 0 < phases["start-up"].wasted == second.wasted < second.measured
    assert phases["compute"].measured > 0
    assert {steps[1] for piece in pieces if (steps := piece.steps)} >= {6}
    rows = by_checkpoint(pieces, made.folder)
    assert [row["step"] for row in rows] == [4, 6]


def test_what_the_compiler_leaves_uncompiled_is_counted_and_warned_of(opened, caplog):
    """The words are torch's own: a function is compiled for more shapes than it may be."""
    torch._dynamo.reset()
    meter, before = opened[0], compiled_graphs()

    def twice(x):
        return x * 2

    compiled = torch.compile(twice, backend="eager", dynamic=False)
    with torch._dynamo.config.patch(recompile_limit=2):
        for length in (3, 4):
            compiled(torch.ones(length))
        first = meter.step(1, 1, 1)
        compiled(torch.ones(5))
    second = meter.step(1, 1, 1)
    third = meter.step(1, 1, 1)
    assert first["graphs"] == second["graphs"] == before + 2
    assert [values["uncompiled"] - first["uncompiled"] for values in (first, second, third)] == [0, 1, 1]
    assert sum("uncompiled" in record.message for record in caplog.records) == 1

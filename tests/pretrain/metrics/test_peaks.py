from __future__ import annotations

import pytest
import torch

from governance.files import shipped_table
from pretrain.metrics import peak_flops as peaks
from pretrain.metrics.peak_flops import Peak, arithmetic_of, data_sheet, device_name, measured_product, sampled_product

CPU = torch.device("cpu")
MEASURED, SAMPLED = peaks._SIZES["cpu"], peaks._SAMPLED  # sizes of the program; while tests run, both are small


@pytest.mark.parametrize(
    ("name", "arithmetic", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp8", 1978.8),
        ("NVIDIA H100 PCIe", "bf16", 756.5),
        ("NVIDIA H100 NVL", "fp32", 60.0),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA H200 NVL", "bf16", 835.5),
        ("NVIDIA B200", "bf16", 2250.0),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156.0),
        ("NVIDIA A10", "bf16", 125.0),
        ("NVIDIA L4", "fp16", 121.0),
        ("NVIDIA L40", "bf16", 181.05),
        ("NVIDIA L40S", "bf16", 362.05),
        ("Tesla V100-SXM2-32GB", "fp16", 125.0),
        ("Tesla V100-PCIE-16GB", "fp16", 112.0),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4),
        ("Tesla T4", "fp16", 65.0),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("AMD Instinct MI250X", "bf16", 191.5),
        ("AMD Instinct MI300X", "fp8", 2614.9),
    ],
)
def test_a_known_card_has_its_data_sheets_dense_figure(name, arithmetic, teraflops):
    found = data_sheet(name, arithmetic)
    assert found.flops_per_second == pytest.approx(teraflops * 1e12)
    assert "data sheet" in found.source or "white paper" in found.source
    assert arithmetic in found.source


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [
        ("Some Card", "bf16"),
        ("NVIDIA A10G", "bf16"),  # not an A10
        ("NVIDIA H20", "bf16"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),  # a seventh of a card
        ("NVIDIA GeForce RTX 4090 D", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("NVIDIA A100-SXM-64GB", "bf16"),  # a custom part with more cores
        ("Tesla V100-SXM2-32GB", "bf16"),  # it has none
        ("NVIDIA A100-SXM4-80GB", "fp8"),
        ("NVIDIA B200", "fp32"),
    ],
)
def test_what_no_sheet_says_is_unknown_and_not_zero(name, arithmetic):
    found = data_sheet(name, arithmetic)
    assert found.flops_per_second is None
    assert name in found.source


def test_rates_of_a_card_keep_their_order():
    for card in shipped_table("pretrain.metrics", "peak_flops.toml")["cards"]:
        rates = card["teraflops"]
        known = [rates[kind] for kind in ("fp32", "tf32", "bf16", "fp8") if kind in rates]
        assert known == sorted(known), card
        assert rates.get("bf16", rates["fp16"]) == rates["fp16"]


def test_precisions_have_their_arithmetic(monkeypatch):
    cuda = torch.device("cuda", 0)
    wanted = {"fp32": "fp32", "bf16": "bf16", "bf16_masters": "bf16", "autocast": "bf16", "fp16": "fp16", "fp8": "fp8"}
    assert {precision: arithmetic_of(precision, cuda) for precision in wanted} == wanted
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert arithmetic_of("fp32", cuda) == "tf32"
    assert arithmetic_of("fp32", CPU) == "fp32"


@pytest.mark.parametrize(("arithmetic", "shown"), [("fp32", "fp32"), ("bf16", "bf16"), ("fp8", "bfloat16")])
def test_a_product_is_measured_in_its_arithmetic(monkeypatch, arithmetic, shown):
    monkeypatch.setitem(peaks._SIZES, "cpu", (64, 128))
    monkeypatch.setattr(peaks, "_SECONDS_PER_SIZE", 0.01)
    kinds = []
    product = peaks._product
    monkeypatch.setattr(peaks, "_product", lambda *given: kinds.append(given[1]) or product(*given))
    before = torch.get_rng_state()
    found = measured_product(CPU, arithmetic)
    assert found.flops_per_second > 0
    assert f"{shown}," in found.source
    assert "^3 product" in found.source
    assert set(kinds) == {torch.float32 if arithmetic == "fp32" else torch.bfloat16}
    assert torch.equal(before, torch.get_rng_state())  # the run's own random numbers are unchanged


def test_the_best_size_counts_and_slow_devices_measure_few(monkeypatch):
    monkeypatch.setitem(peaks._SIZES, "cpu", MEASURED)
    monkeypatch.setattr(peaks, "_SECONDS_PER_SIZE", 0.15)
    monkeypatch.setattr(peaks, "_SAMPLED", SAMPLED)
    monkeypatch.setattr(peaks, "_product", lambda size, kind, device: size)
    monkeypatch.setattr(peaks, "_best_seconds", lambda size, *_: size**3 / {512: 1e9, 1024: 4e9, 2048: 3e9}[size])
    assert measured_product(CPU, "fp32").source.startswith("measured at start: best 512^3")  # 1024 alone would take 3 s
    monkeypatch.setattr(peaks, "_best_seconds", lambda size, *_: size**3 / {512: 1e12, 1024: 4e12, 2048: 3e12}[size])
    found = measured_product(CPU, "fp32")
    assert found.flops_per_second == pytest.approx(8e12)
    assert "1024^3" in found.source
    assert sampled_product("fp32") == pytest.approx(8e12)


def test_a_full_device_is_unknown(monkeypatch):
    def refuse(*given):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(peaks, "_product", refuse)
    assert measured_product(CPU, "fp32") == Peak(
        None, "unknown: the device's memory is too full to measure a matrix product"
    )


def test_a_processor_has_a_name():
    assert device_name(CPU)

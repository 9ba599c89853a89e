"""Prometheus' text format, read back by a reader of its grammar; and a training's last values in it."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from governance.files import read_lines
from pretrain.metrics import mirrors
from pretrain.metrics.mirrors import exposition

SAMPLE = re.compile(r'(assay_[a-zA-Z0-9_]*)\{run="(\w+)",name="((?:[^"\\\n]|\\[\\"n])*)"\} (\S+)')


def read(text):
    """(metric, name) -> value; every line is a type or a sample, and a family's lines are together."""
    found, families = {}, []
    for line in text.splitlines():
        if line.startswith("#"):
            families.append(line.removeprefix("# TYPE ").removesuffix(" gauge"))
            continue
        metric, _, label, value = SAMPLE.fullmatch(line).groups()
        assert metric == families[-1]
        name = re.sub(r"\\(.)", lambda escaped: "\n" if escaped[1] == "n" else escaped[1], label)
        found[metric, name] = float(value.replace("Inf", "inf"))
    assert len(families) == len(set(families))
    return found


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["train", "loss", "ranks"]), st.text(max_size=9)), st.floats(), max_size=9
    )
)
def test_every_value_is_read_back(values):
    text = exposition({f"{section}/{name}": value for (section, name), value in values.items()}, "0123abcd")
    lines = text.replace("\r", "r")  # splitlines would cut at other separators, which the format does not know
    assert lines.count("\n") == len(values) + len({section for section, _ in values}) or not values
    for (section, name), value in values.items():
        if name.splitlines() in ([], [name]):
            held = read(exposition({f"{section}/{name}": value}, "0123abcd"))
            assert held == {(f"assay_{section}", name): value} or math.isnan(value)


def test_a_training_leaves_its_last_values(tmp_path, run_training, monkeypatch):
    monkeypatch.setattr(mirrors, "_WRITE_SECONDS", 0.0)
    run = run_training(tmp_path, prometheus=str(tmp_path))
    [path] = tmp_path.glob("assay-*.prom")
    assert path.name == f"assay-{run.key[:8]}.prom"
    found = read(path.read_text())
    last = [line for line in read_lines(tmp_path / run.folder / "metrics.jsonl") if line["event"] == "step"][-1]
    assert found["assay_train", "loss"] == last["loss"]
    assert found["assay_speed", "tokens_per_second"] == last["tokens_per_second"]
    assert (found["assay_step", ""], found["assay_running", ""]) == (10, 0)
    parser = pytest.importorskip("prometheus_client.parser")  # Prometheus' own reader, where it is installed
    theirs = [sample for family in parser.text_string_to_metric_families(path.read_text()) for sample in family.samples]
    assert {(sample.name, sample.labels["name"]): sample.value for sample in theirs} == found


def test_a_folder_that_is_none_stops_no_run(tmp_path, run_training, caplog):
    run_training(tmp_path, prometheus=str(tmp_path / "none"), steps=2, warmup_steps=0, decay_steps=1)
    assert "Prometheus does not start" in caplog.text

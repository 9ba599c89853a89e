"""Trainings of students: key, inputs, exact resume, draws, first weights, and clear refusals."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from governance.energy.ancestry import read_trainings
from governance.errors import AlteredFile, CheckpointError, ConfigError, MissingInput
from governance.manifest import Manifest, read_manifest, write_manifest
from governance.stage import Runtime
from pretrain.checkpoint.format import identity_of
from pretrain.config.distillation import DistillationConfig
from pretrain.config.model import ModelConfig
from pretrain.config.training import EngineConfig, TrainConfig
from pretrain.data.dataset import open_rows
from pretrain.distillation import drawn_logits
from pretrain.distillation.distilled_training import Distillation
from pretrain.distillation.drawn_logits import draw_logits, open_draws
from pretrain.distillation.narrowed_weights import kept_layer, narrowed, refuse_other_form
from pretrain.distillation.student import probabilities
from pretrain.distillation.teacher import Teacher
from pretrain.evaluation.validation import evaluate, load_decoder
from pretrain.model.decoder import Decoder
from pretrain.model.init import initial_weight
from tests.altered_files import flip
from tests.pretrain.conftest import VOCABULARY
from tests.pretrain.initial_weights.test_initial_weights import saved

DRAWN = {"samples": 4, "seed": 3}
SMALL = {"num_hidden_layers": 1, "steps": 6, "every_steps": 2, "decay_steps": 2, "validate_every_steps": 3}


@pytest.fixture(scope="module")
def taught(finished, tmp_path_factory):
    """A copy of a root with a trained teacher, and the teacher's name there."""
    root = shutil.copytree(finished[0], tmp_path_factory.mktemp("taught") / "root")
    return root, str(Path(finished[1].stats["checkpoint"]["path"]).parent)


def teacher_at(root: Path, name: str) -> Teacher:
    from pretrain.checkpoint.load import named_checkpoint

    held = named_checkpoint("teacher", name, root)
    return Teacher(held.manifest.as_input(), identity_of(held.manifest).recipe.model, held)


def drawn(root: Path, name: str, tokens: Manifest, **changes) -> Manifest:
    """The draws that students of this teacher need."""
    section = DistillationConfig(teacher=name, logits="sampled", **changes)
    return draw_logits(teacher_at(root, name), tokens, (section, 32), Runtime(root=root))


def test_a_recipe_without_a_teacher_is_that_of_before():
    config = TrainConfig(sequence_length=8, global_batch_size=1, steps=1)
    assert "distillation" not in config.model_dump(mode="json")
    taught = TrainConfig(sequence_length=8, global_batch_size=1, steps=1, distillation={"teacher": "somewhere"})
    assert "teacher" not in taught.model_dump(mode="json")["distillation"]
    online = [DistillationConfig(teacher="t", **values).model_dump(mode="json") for values in ({}, DRAWN)]
    assert online[0] == online[1]
    assert online[0]["samples"] == 16  # keys of before stay
    drawn = DistillationConfig(teacher="t", logits="sampled", **DRAWN)
    assert drawn.model_dump(mode="json").items() >= DRAWN.items()


def test_ranks_measure_the_teachers_loss_together(taught, make_tokens):
    """Two threads stand for ranks: each passes its rows, and all get the same sums."""
    root, name = taught
    teacher = teacher_at(root, name)
    recipe = identity_of(teacher.checkpoint.manifest).recipe
    of = Distillation(teacher, recipe, DistillationConfig(teacher=name), None)
    rows = open_rows(make_tokens(root), "validation", root, 32)
    passes = []
    alone = of.loss_of_teacher(rows, 2, torch.device("cpu"), lambda value: [value], (0, 1), lambda: passes.append(1))
    assert len(passes) == -(-alone.rows // 2) > 1  # each is a sign of life: all together may take hours
    barrier, given = threading.Barrier(2, timeout=300), {}

    def measured(rank):
        def gather(value):
            given[rank] = value
            barrier.wait()
            both = [given[0], given[1]]
            barrier.wait()
            return both

        return of.loss_of_teacher(rows, 2, torch.device("cpu"), gather, (rank, 2))

    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(measured, range(2))
    assert first == second
    assert (first.tokens, first.rows) == (alone.tokens, alone.rows)
    assert first.loss == pytest.approx(alone.loss, rel=1e-9)


def test_a_student_names_its_teacher_and_counts_its_energy(taught, run_training):
    root, name = taught
    student = run_training(root, distillation={"teacher": name, "temperature": 2.0}, **SMALL)
    twin = run_training(root, **SMALL)
    parent = read_manifest(root / name / "manifest.json")
    assert student.inputs[1] == parent.as_input()
    assert student.key != twin.key
    last = read_manifest(root / student.stats["checkpoint"]["path"])
    assert last.inputs == student.inputs
    assert identity_of(last).recipe.train.distillation.temperature == 2.0  # its checkpoint needs no teacher
    found = evaluate(root / last.folder, read_manifest(root / student.inputs[0].path), EngineConfig(threads=1), root)[0]
    assert found.loss == pytest.approx(student.stats["validation_loss"], rel=0.2)  # of other rows
    of = student.stats["distillation"]
    assert of["teacher"]["digest"] == parent.digest
    [measured] = [row for row in read_validations(root, parent) if row["step"] == 10]
    assert of["teacher_loss"] == pytest.approx(measured["loss"], abs=1e-6)
    trainings, _ = read_trainings([student], root)
    assert [start.artifact for start in trainings[student.folder].starts] == [
        f"train/{parent.config['train_key'][:16]}"
    ]


def test_a_teacher_is_measured_before_its_student_takes_the_memory(taught, run_training, monkeypatch):
    """After the last step there may be no room for a large teacher, and the run would end without a result.

    It reaches the device rounded: in fp32 it may not fit there.
    """
    seen = []

    def noted(kind, name, fact):
        before = getattr(kind, name)
        monkeypatch.setattr(
            kind, name, lambda self, *args, **named: seen.append(fact(self)) or before(self, *args, **named)
        )

    noted(Distillation, "loss_of_teacher", lambda self: "measured")
    noted(Distillation, "student", lambda self: "student")
    noted(Decoder, "to", lambda self: self.lm_head.weight.dtype)
    root, name = taught
    section = {"teacher": name, "weight": 0.3}
    stats = run_training(root, distillation=section, precision="bf16", **SMALL).stats
    assert seen[:4] == ["measured", torch.bfloat16, "student", torch.bfloat16]
    assert stats["distillation"]["teacher_loss"] > 0


def read_validations(root: Path, checkpoint: Manifest):
    return json.loads((root / checkpoint.folder / "state.json").read_bytes())["validations"]


@pytest.mark.parametrize("logits", ["online", "sampled"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_that_was_interrupted_is_the_uninterrupted_one(
    taught, tmp_path, run_training, make_tokens, kill_at, logits, precision
):
    root, name = shutil.copytree(taught[0], tmp_path / "root"), taught[1]
    section = {"teacher": name, "logits": logits, "start": "teacher"}
    if logits == "sampled":
        drawn(root, name, make_tokens(root))
    else:
        section |= {"hidden_weight": 0.1, "projection": True}
    other = shutil.copytree(root, tmp_path / "other")
    whole = run_training(root, distillation=section, precision=precision, **SMALL)
    kill_at(5, other, distillation=section, precision=precision, **SMALL)
    assert run_training(other, distillation=section, precision=precision, **SMALL).digest == whole.digest


def test_draws_are_of_the_teachers_distributions_and_a_pass_goes_on(taught, tmp_path, make_tokens, monkeypatch):
    root, name = taught
    tokens = make_tokens(root)
    whole = drawn(root, name, tokens, samples=24, temperature=2.0)
    rows = open_rows(tokens, "train", root, 32)
    batch = rows.batch([3, 0])
    draws, counted = open_draws(whole, rows, root)([3, 0]), batch.targets >= 0
    decoder = load_decoder(read_manifest(root / name / "manifest.json"), root)
    with torch.no_grad():
        states, _ = decoder.model(batch.tokens, batch.segments, batch.positions)
        p = probabilities(decoder, states[counted], VOCABULARY, 2.0)
    counts = torch.stack([torch.bincount(one, minlength=p.shape[1]) for one in torch.from_numpy(draws)[counted]])
    assert bool(((counts - 24 * p).abs() < 1.001).all())
    assert whole.stats["bytes_per_token"] == 48
    assert sum(output.bytes for output in whole.outputs) == 48 * 32 * rows.count

    other = shutil.copytree(root, tmp_path / "other", ignore=shutil.ignore_patterns("teacher_logits"))
    monkeypatch.setattr(drawn_logits, "SHARD_BYTES", 20 * 32 * 48)
    made, draw = [], drawn_logits._draw_shard

    def stopped(section, payload, path_of):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(payload[1])
        return draw(section, payload, path_of)

    monkeypatch.setattr(drawn_logits, "_draw_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        drawn(other, name, tokens, samples=24, temperature=2.0)
    monkeypatch.setattr(drawn_logits, "_draw_shard", lambda *given: made.append(given[1][1]) or draw(*given))
    again = drawn(other, name, tokens, samples=24, temperature=2.0)
    assert made == list(range(0, rows.count, 20))
    assert (open_draws(again, rows, other)([3, 0]) == draws).all()


def test_experts_of_a_student_begin_with_the_biases_of_the_teachers_layers(tmp_path, run_training, monkeypatch):
    moe = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_bias_update_rate": 0.25}
    teacher = run_training(tmp_path, moe=moe, steps=3, every_steps=3, decay_steps=1)
    name, restored = str(Path(teacher.stats["checkpoint"]["path"]).parent), []
    held = json.loads((tmp_path / name / "state.json").read_bytes())["expert_bias"]
    assert any(held[0])
    monkeypatch.setattr("pretrain.loop.restore_expert_bias", lambda model, values: restored.append(values))
    section = {"teacher": name, "start": "teacher"}
    run_training(tmp_path, moe=moe, num_hidden_layers=1, steps=3, every_steps=3, decay_steps=1, distillation=section)
    assert restored == [held[:1]]


def test_layers_are_chosen_evenly():
    assert [kept_layer(layer, 3, 12) for layer in range(3)] == [0, 6, 11]
    assert [kept_layer(layer, 4, 4) for layer in range(4)] == [0, 1, 2, 3]
    assert kept_layer(0, 1, 12) == 0


@given(of=st.integers(1, 40), data=st.data())
def test_chosen_layers_rise_from_the_first_to_the_last(of, data):
    layers = data.draw(st.integers(1, of))
    chosen = [kept_layer(layer, layers, of) for layer in range(layers)]
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert layers == 1 or chosen[-1] == of - 1


WIDE = ModelConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=32, head_dim=8, qk_norm=True,
)  # fmt: skip
NARROW = WIDE.model_copy(
    update={"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2}
)  # fmt: skip


def test_the_units_that_a_narrower_student_keeps_are_the_teachers():
    """A teacher whose other units are zero loses nothing by them: the student computes its logits."""
    teacher = Decoder(WIDE, 60)
    kept, inner = torch.arange(32) % 4 != 1, torch.arange(48) % 6 != 2  # 24 and 40 of them
    with torch.no_grad():
        for name, value in teacher.named_parameters():
            value.copy_(initial_weight(name, value.shape, WIDE, 0) * 8)
            if value.ndim == 2:
                rows, columns = kept if value.shape[0] == 32 else None, kept if value.shape[1] == 32 else None
                if name.endswith(("gate_proj.weight", "up_proj.weight")):
                    rows = inner
                if name.endswith("down_proj.weight"):
                    columns = inner
                if name.endswith("o_proj.weight"):  # the first head of each group of two
                    columns = (torch.arange(32) // 8) % 2 == 0
                if rows is not None and not name.endswith("q_proj.weight"):
                    value[~rows] = 0
                if columns is not None:
                    value[:, ~columns] = 0
    student = Decoder(NARROW, 60)
    refuse_other_form(NARROW, WIDE)
    teacher.model.layers = torch.nn.ModuleList([teacher.model.layers[0], teacher.model.layers[3]])
    teacher.config = WIDE.model_copy(update={"num_hidden_layers": 2})
    weight = narrowed(teacher, NARROW)
    with torch.no_grad():
        for name, value in student.named_parameters():
            value.copy_(weight(name, value.shape))
            if name.endswith("layernorm.weight") or name == "model.norm.weight":
                value.mul_((32 / 24) ** 0.5)  # RMSNorm divides by the mean over all units
        tokens = torch.randint(0, 60, (2, 16), generator=torch.Generator().manual_seed(0))
        given = (tokens, torch.zeros_like(tokens, dtype=torch.int32), torch.arange(16).expand(2, 16))
        ours, theirs = (model.lm_head(model.model(*given)[0]) for model in (student, teacher))
    assert float(theirs.abs().max()) > 0.1
    assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))


def test_a_folder_of_hugging_face_weights_teaches(tmp_path, run_training, make_tokens):
    saved("llama", tmp_path / "folder", vocab_size=VOCABULARY)
    section = {"teacher": str(tmp_path / "folder"), "hidden_weight": 0.1}
    student = run_training(tmp_path / "root", distillation=section, **SMALL)
    assert [item.stage for item in student.inputs] == ["encode", "file"]
    assert student.stats["distillation"]["teacher"]["parameters"] > student.stats["parameters"]


def _other_vocabulary(root: Path, name: str) -> dict:
    saved("llama", root / "folder", vocab_size=150)
    return {"teacher": str(root / "folder")}


def _altered(root: Path, name: str) -> dict:
    path = next((root / name / "weights").iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    return {"teacher": name}


def _altered_behind_draws(root: Path, name: str) -> dict:
    drawn(root, name, read_manifest(next((root / "encode").glob("*/manifest.json"))))
    return _altered(root, name) | {"logits": "sampled", "start": "teacher"}


def _removed_behind_draws(root: Path, name: str) -> dict:
    drawn(root, name, read_manifest(next((root / "encode").glob("*/manifest.json"))))
    shutil.rmtree(root / name / "weights")
    return {"teacher": name, "logits": "sampled"}


def _torn(root: Path, name: str) -> dict:
    path = root / name / "manifest.json"
    path.write_text(path.read_text()[:-20])
    return {"teacher": name}


def _other_packing(root: Path, name: str) -> dict:
    tokens = read_manifest(next((root / "encode").glob("*/manifest.json")))
    drawn(root, name, tokens)
    write_manifest(tokens.model_copy(update={"stats": {"packed": "otherwise"}}), root)
    return {"teacher": name, "logits": "sampled"}


def _altered_draws(root: Path, name: str) -> dict:
    made = drawn(root, name, read_manifest(next((root / "encode").glob("*/manifest.json"))))
    path = root / made.outputs[0].path
    flip(path, 0)
    return {"teacher": name, "logits": "sampled"}


FAULTS = {
    "another vocabulary": (_other_vocabulary, CheckpointError, r"train\.distillation\.teacher: .*150 rows.*200 tokens"),
    "altered": (_altered, CheckpointError, r"which train\.distillation\.teacher names, is damaged"),
    "altered behind draws": (_altered_behind_draws, CheckpointError, "which train.distillation.teacher names, is dam"),
    "removed behind draws": (_removed_behind_draws, CheckpointError, "which train.distillation.teacher names, is dam"),
    "torn": (_torn, CheckpointError, "manifest.json"),
    "other packing": (_other_packing, MissingInput, r"one packing of the rows(.|\n)*|assay teacher-logits CONFIG"),
    "altered draws": (_altered_draws, AlteredFile, "Remove these files, then make them again"),
    "missing": (lambda root, name: {"teacher": "checkpoint/none"}, MissingInput, r"train\.distillation\.teacher"),
    "no draws": (lambda root, name: {"teacher": name, "logits": "sampled"}, MissingInput, "assay teacher-logits C"),
    "other form": (
        lambda root, name: {"teacher": name, "start": "teacher"},
        ConfigError, "model.num_hidden_layers is 3, above the teacher's 2",
    ),
    "other width": (
        lambda root, name: {"teacher": name, "hidden_weight": 1.0},
        ConfigError, "have 24 units, those of train.distillation.teacher have 32. Set projection = true",
    ),
}  # fmt: skip
CHANGES = {"other form": {"num_hidden_layers": 3}, "other width": {"hidden_size": 24, "intermediate_size": 40}}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_teacher_is_refused_and_nothing_is_lost(taught, tmp_path, run_training, fault):
    root = shutil.copytree(taught[0], tmp_path / "root")
    prepare, error, message = FAULTS[fault]
    section = prepare(root, taught[1])
    before = {path for path in (root / "checkpoint").rglob("*") if path.is_file()}
    with pytest.raises(error, match=message):
        run_training(root, distillation=section, **{**SMALL, **CHANGES.get(fault, {})})
    assert {path for path in (root / "checkpoint").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"temperature": 0.0}, "temperature"), ({"temperature": -1.0}, "temperature"), ({"weight": 0.0}, "weight"),
        ({"weight": 1.5}, "weight"), ({"projection": True}, "hidden_weight"),
        ({"logits": "sampled", "hidden_weight": 1.0}, "logits = online"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(section, message):
    with pytest.raises(ValueError, match=message):
        DistillationConfig(**{"teacher": "t", **section})


def test_a_classifier_is_no_student(taught, run_training):
    with pytest.raises(ConfigError, match="student and teacher are language models"):
        run_training(taught[0], distillation={"teacher": taught[1]}, num_labels=3, **SMALL)


def test_a_student_begins_at_step_0(taught, run_training):
    root, name = taught
    with pytest.raises(ConfigError, match="a student begins at step 0"):
        run_training(root, continue_from=name, distillation={"teacher": name}, steps=20)

"""The student's loss and gradient: those of torch alone, dense and drawn, under DeepSpeed at every stage."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.distillation import DistillationConfig
from pretrain.distillation.drawn_logits import systematic
from pretrain.distillation.student import Student, TeacherLoss, frequencies, probabilities
from pretrain.model.loss import Logits, cross_entropy
from tests.pretrain.distillation.distilled_gradients import errors_of_students, frozen_teacher
from tests.pretrain.engine.repeated_modules import MODEL, VOCABULARY
from tests.pretrain.engine.test_engine_state import batches
from tests.pretrain.engine.test_repeated_modules import check
from tests.pretrain.rank_runs import found_by_ranks


def positions(count: int = 32):
    """Hidden states of a student and a teacher, the student's head, targets of which some are none."""
    generator = torch.Generator().manual_seed(3)
    teacher = frozen_teacher()
    hidden = torch.randn(count, 16, generator=generator)
    weight = torch.randn(teacher.lm_head.out_features, 16, generator=generator) / 4
    targets = torch.randint(0, VOCABULARY, (count,), generator=generator)
    targets[::5] = -100
    return hidden, weight, targets, teacher, torch.randn(count, 24, generator=generator)


def slope_of(soft_targets, weight_of_teacher, temperature, rule=Logits()):  # noqa: B008
    """Objective and gradient of the head by our loss."""
    hidden, weight, targets, *_ = positions()
    weight.requires_grad_(True)
    soft = TeacherLoss(lambda piece: soft_targets[piece], weight_of_teacher, temperature)
    objective, _ = cross_entropy(hidden, weight, targets, rule, None, soft)
    objective.backward()
    return objective.detach(), weight.grad


@settings(max_examples=30)
@given(
    share=st.floats(0.05, 1.0), temperature=st.floats(0.5, 4.0), softcap=st.sampled_from([None, 5.0]),
    z_loss=st.sampled_from([0.0, 0.1]), scale=st.sampled_from([1.0, 0.5]),
)  # fmt: skip
def test_the_mixed_loss_is_that_of_its_formula(share, temperature, softcap, z_loss, scale):
    hidden, weight, targets, teacher, states = positions()
    rule = Logits(scale, softcap, z_loss)
    found, slope = slope_of(probabilities(teacher, states, VOCABULARY, temperature), share, temperature, rule)
    weight.requires_grad_(True)
    logits, counted = rule.of(F.linear(hidden, weight)), targets >= 0
    hard = F.cross_entropy(logits[counted], targets[counted], reduction="sum")
    hard = hard + z_loss * logits.logsumexp(-1)[counted].square().sum()
    soft_targets = teacher.lm_head(states)[:, :VOCABULARY].div(temperature).softmax(-1)
    soft = -(soft_targets * torch.log_softmax(logits / temperature, -1)[:, :VOCABULARY]).sum(-1)[counted].sum()
    expected = (1 - share) * hard + share * temperature**2 * soft
    expected.backward()
    assert torch.allclose(found, expected.detach(), rtol=1e-4)
    assert torch.allclose(slope, weight.grad, atol=1e-4 * float(weight.grad.abs().max()))


@settings(max_examples=50)
@given(st.integers(0, 1 << 30), st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_no_token_is_drawn_a_whole_time_more_or_less_than_its_share(seed, samples, uniform):
    p = torch.rand(1, 50, generator=torch.Generator().manual_seed(seed)).pow(6)
    p /= p.sum()
    drawn = systematic(p, torch.tensor([uniform], dtype=torch.float64), samples)
    counts = torch.bincount(drawn[0], minlength=50)
    assert int(counts.sum()) == samples
    assert bool(((counts - samples * p[0]).abs() < 1 + 1e-4).all())


def test_draws_average_to_the_distribution():
    p = torch.rand(1, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(5)
    p /= p.sum()
    fine = torch.arange(20_000, dtype=torch.float64).add(0.5) / 20_000  # the uniform number, as good as everywhere
    drawn = systematic(p.expand(len(fine), -1), fine, 4)
    assert torch.allclose(torch.bincount(drawn.flatten(), minlength=30).double() / drawn.numel(), p[0], atol=1e-4)


def test_the_gradient_of_draws_is_unbiased_and_that_of_the_likeliest_is_not():
    """Each element within 3 standard errors of the dense gradient, as often as chance has it."""
    *_, teacher, states = positions()
    _, dense = slope_of(probabilities(teacher, states, VOCABULARY, 1.5), 1.0, 1.5)
    p = probabilities(teacher, states, VOCABULARY, 1.5)
    generator = torch.Generator().manual_seed(1)
    rows, found = teacher.lm_head.out_features, []
    for _ in range(200):
        uniform = torch.rand(len(states), generator=generator, dtype=torch.float64)
        found.append(slope_of(frequencies(systematic(p, uniform, 4), rows), 1.0, 1.5)[1])
    means, errors = torch.stack(found).mean(0), torch.stack(found).std(0) / math.sqrt(len(found))
    apart = ((means - dense) / errors.clamp(min=1e-12))[:VOCABULARY]
    assert float((apart.abs() > 3).double().mean()) < 0.01  # .0027 by chance
    likeliest = p.topk(4).indices
    kept = p.gather(-1, likeliest)
    biased = torch.zeros_like(p).scatter_(-1, likeliest, kept / kept.sum(-1, keepdim=True))
    _, other = slope_of(biased, 1.0, 1.5)
    assert float((other - dense).norm()) > 5 * float((means - dense).norm())


def test_without_gradients_a_student_is_a_decoder():
    student = Student(MODEL, VOCABULARY, distillation=DistillationConfig(teacher="t", logits="sampled"), teacher=None)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_(0.0, 0.1)
        for batch in batches(1, share=False):
            objective, nats = student(batch.tokens, batch.targets, batch.segments, batch.positions)
            assert objective == nats.sum()
    assert "_teachers" not in dict(student.named_modules())


def test_students_learn_under_deepspeed_as_in_torch_alone():
    check(errors_of_students((("fp32", 3, "none"), ("bf16", 2, "none"))))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_students_learn_as_in_torch_alone_at_every_stage(tmp_path, ranks):
    errors = found_by_ranks(tmp_path, "distillation.distilled_gradients", "errors_of_students()", ranks)
    assert len(errors) == 14
    check(errors, 5e-5)  # two ranks sum a batch in another order: 1.4e-5 at every stage, stage 0 included

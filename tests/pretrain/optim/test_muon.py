from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pretrain.config.optim import OptimConfig
from pretrain.optim.muon import newton_schulz, orthogonalize
from pretrain.optim.muon_sharding import plan
from pretrain.optim.optimizers import make_optimizer, parameter_groups
from pretrain.optim.zero_fragments import Fragment


def plain_newton_schulz(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The definition, in fp64 and one matrix at a time."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.double()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def matrices(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_singular_values_come_near_one():
    [made] = newton_schulz(matrices((64, 160))[0][None], 5)
    values = torch.linalg.svdvals(made.float())
    assert 0.6 < values.min() < values.max() < 1.3


def test_updates_are_the_definitions_in_the_order_given():
    given = matrices((24, 40), (40, 24), (16, 16), (24, 40), (24, 24))
    for matrix, made in zip(given, orthogonalize(given, 5), strict=True):
        rows, columns = matrix.shape
        assert made.shape == matrix.shape
        expected = plain_newton_schulz(matrix) * max(1.0, rows / columns) ** 0.5
        assert (made.double() - expected).norm() / expected.norm() < 0.02  # bf16 has 8 bits


def test_many_of_one_size_are_cut_into_batches_and_experts_are_matrices_of_their_own(monkeypatch):
    given = matrices(*[(8, 12)] * 5)
    whole = orthogonalize(given, 5)
    monkeypatch.setattr("pretrain.optim.muon._BATCH_BYTES", 2 * 8 * 12 * 2)
    assert all(torch.allclose(a, b, atol=0.02) for a, b in zip(whole, orthogonalize(given, 5), strict=True))
    [experts] = orthogonalize([torch.stack(given)], 5)
    assert torch.allclose(experts, torch.stack(whole), atol=0.02)


def test_no_gradient_at_all_moves_nothing():
    [made] = orthogonalize([torch.zeros(4, 6)], 5)
    assert torch.equal(made, torch.zeros(4, 6, dtype=torch.bfloat16))


def test_the_rule_of_the_paper():
    config = OptimConfig(learning_rate=1.0, optimizer="muon", muon_learning_rate=0.1, muon_weight_decay=0.5)
    weight = nn.Parameter(matrices((12, 6))[0])
    groups = parameter_groups([("model.layers.0.w", weight)], config, lambda p: p.shape)
    optimizer = make_optimizer(groups, config)
    plain, moment = weight.detach().clone(), torch.zeros(12, 6)
    for seed in range(4):
        gradient = torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))
        weight.grad = gradient.clone()
        optimizer.step()
        moment = 0.95 * moment + 0.05 * gradient
        update = plain_newton_schulz(0.95 * moment + 0.05 * gradient) * 2**0.5
        plain = plain * (1 - 0.1 * 0.5) - 0.1 * update
        assert torch.allclose(weight.detach().double(), plain.double(), atol=0.02)
        assert torch.allclose(optimizer.state[weight]["momentum_buffer"], moment)


def test_only_the_part_of_adamw_is_clipped():
    config = OptimConfig(learning_rate=0.1, optimizer="muon", gradient_clipping=0.5)
    named = [("model.layers.0.w", nn.Parameter(torch.ones(3, 4))), ("lm_head.weight", nn.Parameter(torch.ones(5, 4)))]
    optimizer = make_optimizer(parameter_groups(named, config, lambda p: p.shape), config)
    for _, parameter in named:
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.clip({"muon": torch.tensor(1e9), "matrices": torch.tensor(3.0 * 20**0.5)})
    optimizer.step()
    moment = optimizer.state[named[1][1]]["exp_avg"] / (1 - 0.9)
    assert float(moment.norm()) == pytest.approx(0.5, rel=1e-5)
    assert torch.allclose(optimizer.state[named[0][1]]["momentum_buffer"], torch.full((3, 4), 3.0 * 0.05))
    optimizer.clip({"muon": torch.tensor(1.0), "matrices": torch.tensor(0.1)})
    assert float(optimizer.grad_scale) == 1.0


def layouts(shapes: list[tuple[int, int]], ranks: int, even: bool) -> list[list[Fragment]]:
    """ZeRO's placement: one run cut into equal parts (stages 1 and 2), or each matrix cut into equal parts (3)."""
    sizes = [rows * columns for rows, columns in shapes]
    held: list[list[Fragment]] = [[] for _ in range(ranks)]
    part, begin = -(-sum(sizes) // ranks), 0
    offsets = [0] * ranks
    for index, size in enumerate(sizes):
        piece = -(-size // ranks)
        for rank in range(ranks):
            low, high = (piece * rank, piece * (rank + 1)) if even else (part * rank - begin, part * (rank + 1) - begin)
            start, end = min(max(low, 0), size), min(max(high, 0), size)
            offset = offsets[rank] if even else begin + start - part * rank
            if end > start:
                held[rank].append(Fragment(str(index), torch.Size(shapes[index]), start, offset, end - start))
            offsets[rank] += piece
        begin += size
    return held


def play(ranks: int, run: Callable[[int, Callable], None]) -> None:
    """Run every rank in a thread of its own, with an all-to-all between them."""
    import threading

    barrier, boxes = threading.Barrier(ranks), {}

    def rank_of(rank: int) -> Callable:
        def all_to_all(received, given, expected, sent, group=None):
            for other, piece in enumerate(given.split(sent)):
                boxes[rank, other] = piece.clone()
            barrier.wait(300)
            received.copy_(torch.cat([boxes[other, rank] for other in range(ranks)]))
            assert [len(boxes[other, rank]) for other in range(ranks)] == expected
            barrier.wait(300)

        return all_to_all

    faults = []

    def guarded(rank: int) -> None:
        try:
            run(rank, rank_of(rank))
        except BaseException as error:
            faults.append(error)
            barrier.abort()

    threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=6), st.integers(1, 4), st.booleans()
)
def test_every_matrix_is_whole_at_one_owner_and_comes_back(shapes, ranks, even):
    import threading

    held = layouts(shapes, ranks, even)
    wholes = [torch.randn(shape).bfloat16() for shape in shapes]
    length = 1 + max((fragment.offset + fragment.count for some in held for fragment in some), default=0)
    owned: dict[int, list[str]] = {}
    ways: dict[int, Callable] = {}

    def exchange(received, given, expected, sent, group=None):
        ways[threading.get_ident()](received, given, expected, sent)

    def run(rank: int, all_to_all: Callable) -> None:
        ways[threading.get_ident()] = all_to_all
        flat = torch.full((length,), 9.0, dtype=torch.bfloat16)
        for fragment in held[rank]:
            fragment.place(flat).copy_(fragment.cut(wholes[int(fragment.name)]))
        sharing = plan(held, rank)
        made = sharing.collect(flat)
        owned[rank] = [name for name, _ in sharing.owned]
        for name, matrix in zip(owned[rank], made, strict=True):
            assert torch.equal(matrix, wholes[int(name)])
        back = sharing.hand_out([2 * matrix for matrix in made], flat)
        expected = torch.zeros_like(flat)
        for fragment in held[rank]:
            fragment.place(expected).copy_(2 * fragment.cut(wholes[int(fragment.name)]))
        assert torch.equal(back, expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_to_all_single", exchange)
        play(ranks, run)
    assert sorted(name for some in owned.values() for name in some) == sorted(map(str, range(len(shapes))))


def test_the_work_is_shared_evenly_where_every_rank_holds_as_much():
    held = layouts([(8, 8)] * 8, 4, even=True)
    assert [len(plan(held, rank).owned) for rank in range(4)] == [2, 2, 2, 2]

"""Error of the mean gradient when N ranks sum in bf16: simulated, against fp64.

    .venv/bin/python benchmarks/reduction.py
    .venv/bin/python benchmarks/reduction.py --root runs/quickstart     # gradients of a real model, too

Each rank's gradient is a shared signal plus noise of its own, rounded to bf16, as a backward pass leaves it. Every way
sums those same rounded numbers, divided by N first as DeepSpeed does; only what the sum is kept in differs.

- ring: each element passes N - 1 ranks, which add their own and round (NCCL's ring, gloo's).
- tree: pairs, pairs of pairs, ... (NCCL's tree; a lower bound of what bf16 loses).

Figures: the L2 error of the mean over its L2 length, the length of its projection on the true mean, and the same error
for fp32 in the ring. Takes under a minute of one core and no training. With `--root` the gradients are those of the
newest training there, in bf16, of one row per rank, at its initial weights and at its last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measures.goals import Goal, figure

ELEMENTS = 1 << 14
Sum = Callable[[torch.Tensor, torch.dtype], torch.Tensor]


def gradients(ranks: int, signal: float, seed: int = 0, elements: int = ELEMENTS) -> torch.Tensor:
    """[ranks, elements] bf16: `signal` is the length of what is shared over the length of a rank's own noise."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(elements, generator=generator) * signal
    return (shared + torch.randn(ranks, elements, generator=generator)).bfloat16()


def ring(parts: torch.Tensor, kept: torch.dtype) -> torch.Tensor:
    """The sum over the ranks; the element of chunk c begins at rank c, as in a ring all-reduce."""
    ranks, elements = parts.shape
    start = torch.arange(elements) * ranks // elements
    total = torch.zeros(elements, dtype=kept)
    for hop in range(ranks):
        total += parts[(start + hop) % ranks, torch.arange(elements)].to(kept)
    return total


def tree(parts: torch.Tensor, kept: torch.dtype) -> torch.Tensor:
    """The sum over the ranks, a power of two, by pairs."""
    values = parts.to(kept)
    while len(values) > 1:
        values = values[0::2] + values[1::2]
    return values[0]


def lost(parts: torch.Tensor, how: Sum, kept: torch.dtype) -> tuple[float, float]:
    """(error over length, projection over length) of the mean, against fp64 over the same numbers."""
    true = parts.double().mean(0)
    found = how((parts / len(parts)), kept).double()
    return float((found - true).norm() / true.norm()), float(found @ true / (true @ true))


def model_gradients(root: Path, ranks: int, trained: bool, elements: int = ELEMENTS) -> torch.Tensor:
    """[ranks, elements] bf16: of each rank's own row, every so many elements of the whole gradient."""
    from governance.manifest import read_manifest
    from pretrain.checkpoint.format import identity_of
    from pretrain.data.dataset import open_rows, spread
    from pretrain.evaluation.validation import load_decoder
    from pretrain.model.init import initial_weight

    train = max(map(read_manifest, root.glob("train/*/manifest.json")), key=lambda found: str(found.run["finished"]))
    checkpoint = read_manifest(root / train.stats["checkpoint"]["path"])
    recipe, model = identity_of(checkpoint).recipe, load_decoder(checkpoint, root)
    with torch.no_grad():
        for name, parameter in model.named_parameters() if not trained else ():
            parameter.copy_(initial_weight(name, parameter.shape, recipe.model, recipe.train.seed))
    [tokens] = [read_manifest(root / item.path) for item in train.inputs if item.stage in ("encode", "pack")]
    rows, model = open_rows(tokens, "train", root, recipe.train.sequence_length), model.bfloat16()
    step, parts = sum(parameter.numel() for parameter in model.parameters()) // elements, []
    for number in spread(rows.count, ranks):
        batch = rows.batch([number])
        model.zero_grad()
        model(batch.tokens, batch.targets, batch.segments, batch.positions)[0].backward()
        whole = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        parts.append(whole[::step][:elements].clone())
    return torch.stack(parts)


def figures(name: str, parts: torch.Tensor) -> list[Goal]:
    """The errors of these gradients."""
    error, projection = lost(parts, ring, torch.bfloat16)
    label = f"reduction.{name}.{len(parts)}_ranks"
    return [
        figure(f"{label}.ring_bf16_error", error),
        figure(f"{label}.ring_bf16_projection", projection),
        figure(f"{label}.tree_bf16_error", lost(parts, tree, torch.bfloat16)[0]),
        Goal(f"{label}.ring_fp32_error", lost(parts, ring, torch.float32)[0], 1e-6, "<="),
    ]


def main() -> int:
    """Print the figures; the exit status says whether fp32 loses nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 64, 512], help="powers of two")
    parser.add_argument("--signal", type=float, nargs="+", default=[0.1, 1.0, 10.0])
    parser.add_argument("--root", type=Path, help="of a run with a finished training")
    parser.add_argument("--quick", action="store_true", help="for `make bench`; it takes under a minute anyway")
    arguments = parser.parse_args()
    found = []
    for signal in arguments.signal:
        for ranks in arguments.ranks:
            found += figures(f"signal_{signal:g}", gradients(ranks, signal))
    for trained, name in ((False, "initial"), (True, "trained")) if arguments.root else ():
        parts = model_gradients(arguments.root, max(arguments.ranks), trained)
        for ranks in arguments.ranks:
            found += figures(name, parts[:: len(parts) // ranks])
    for goal in found:
        print(goal.line())
    return int(not all(goal.holds for goal in found))


if __name__ == "__main__":
    raise SystemExit(main())

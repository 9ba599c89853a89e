"""Draw of the stretches that an audit repeats, and its odds.

A *stretch* is the steps between two published checkpoints. A fault in one of its steps (a row that was swapped,
another learning rate, weights that were altered) shows only where that stretch is repeated, and does so surely. Of
`count` stretches `amount` are drawn, and each set is as likely as any other, so k faulty ones are all missed with the
probability C(count - k, amount) / C(count, amount).

The draw follows from a public value: the SHA-256 of the journal's head when the draw was stated, the training, and a
nonce that was drawn or published after that. Whoever has the journal can repeat the draw.
"""

from __future__ import annotations

import math

from governance.config import canonical_json
from governance.files import sha256_bytes

_FORM = "assay training audit 1"


def public_value(head: str, training: str, nonce: str) -> str:
    """Random value of a draw, hexadecimal.

    `head` is the journal's ("index:SHA-256"), `training` is "train/<key>".
    """
    return sha256_bytes(canonical_json([_FORM, head, training, nonce]))


def amount_of(count: int, share: float) -> int:
    """Stretches to repeat: a share of all, and at least one."""
    return min(count, max(1, math.ceil(share * count - 1e-9)))


def drawn(value: str, count: int, amount: int) -> list[int]:
    """Numbers, from 0, of the stretches with the least SHA-256; ascending."""
    order = sorted(range(count), key=lambda number: sha256_bytes(f"{value} {number}".encode()))
    return sorted(order[:amount])


def chance_of_finding(count: int, amount: int, faulty: int = 1) -> float:
    """Probability that one of `faulty` stretches is among those drawn."""
    return 1.0 - math.comb(count - faulty, amount) / math.comb(count, amount)


def surely_found(count: int, amount: int) -> int:
    """Least number of faulty stretches that are found with 95 % probability."""
    return next(faulty for faulty in range(1, count + 1) if chance_of_finding(count, amount, faulty) >= 0.95)

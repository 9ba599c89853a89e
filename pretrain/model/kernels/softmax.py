"""Softmax over the visible keys of a query.

Other keys are never read and their weights become 0, so no mask tensor is needed. Both kernels work in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from governance.kernels.compiled import inlined, kernel, loose
from pretrain.model.kernels.bf16 import bits_of_float, exponential, float_of_bits, number, stored

_SIGN, _REST, _NOTHING = np.int32(31), np.int32(0x7FFFFFFF), np.float32(0.0)


@inlined
def _order(value: Any) -> Any:
    """Int32 in the order of an fp32, because integer maxima vectorise.

    A positive NaN is above all other values.
    """
    bits = np.int32(bits_of_float(value))
    return bits ^ ((bits >> _SIGN) & _REST)


@inlined
def _value(order: Any) -> Any:
    return float_of_bits(np.uint32(order ^ ((order >> _SIGN) & _REST)))


@loose
def _largest(row: Any, held: Any) -> Any:
    """Largest element of a row, which is widened into `held`."""
    most = np.int32(-0x80000000)
    for key in range(len(row)):
        value = number(row[key])
        held[key] = value
        most = max(most, _order(value))
    return _value(most)


@loose
def _exponentials(held: Any, top: Any) -> Any:
    """Sum of the exponentials, computed in place."""
    total = _NOTHING
    for key in range(len(held)):
        value = exponential(held[key] - top)
        held[key] = value
        total += value
    return total


@loose
def _product(left: Any, right: Any) -> Any:
    total = _NOTHING
    for key in range(len(left)):
        total += number(left[key]) * number(right[key])
    return total


@kernel
def softmax(_part: int, begin: int, finish: int, logits: Any, firsts: Any, before: int, base: int) -> None:
    """Softmax over the keys that each query sees, in place.

    Logits [N, Q, K] belong to queries from `before` and keys from `base`. N counts the heads of each row; firsts, int32
    [B, L], has the first key that a query sees. The last is itself.
    """
    many, queries, keys = logits.shape
    space = np.empty(keys, np.float32)
    heads = many // len(firsts)
    for head in range(begin, finish):
        seen = firsts[head // heads]
        for query in range(queries):
            start, end = seen[before + query] - base, before + query + 1 - base
            row, held = logits[head, query, start:end], space[start:end]
            share = np.float32(1.0) / _exponentials(held, _largest(row, held))
            for key in range(len(row)):
                row[key] = stored(held[key] * share, row[key])
            logits[head, query, :start] = 0
            logits[head, query, end:] = 0


@kernel
def softmax_gradient(
    _part: int, begin: int, finish: int, into: Any, probs: Any, firsts: Any, before: int, base: int, scale: Any
) -> None:
    """Gradient of softmax inputs from that of probabilities, in place.

    It is dS = scale P (dP - sum of P dP), and 0 for keys that no query sees.
    """
    many, queries, _ = into.shape
    heads = many // len(firsts)
    for head in range(begin, finish):
        seen = firsts[head // heads]
        for query in range(queries):
            start, end = seen[before + query] - base, before + query + 1 - base
            row, prob = into[head, query, start:end], probs[head, query, start:end]
            mean = _product(prob, row)
            for key in range(len(row)):
                row[key] = stored(scale * number(prob[key]) * (number(row[key]) - mean), row[key])
            into[head, query, :start] = 0
            into[head, query, end:] = 0

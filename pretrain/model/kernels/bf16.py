"""bf16 conversion and vectorised functions for kernels.

A bf16 tensor is passed as a uint16 array of its bits; with `number` and `stored` a kernel handles bf16 and fp32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from governance.kernels.compiled import inlined, loose

_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_MIN_EXPONENT, _MAX_EXPONENT = (
    np.float32(-87.0),
    np.float32(88.0),
)  # e to these is almost the range of normal fp32
_ONE = np.float32(1.0)
_16, _BIAS, _FRACTION = np.uint32(16), np.int32(127), np.int32(23)
_ROUND, _LAST, _NAN = np.uint32(0x7FFF), np.uint32(1), np.uint32(0x7FC0)


def array_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """NumPy view of a contiguous CPU tensor, bf16 as its bits.

    Raises:
        TypeError: neither bf16 nor fp32 nor int32 (a kernel compiled for another type would compute something else).
    """
    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray[Any, Any] = tensor.detach().view(torch.int16).numpy().view(np.uint16)
        return bits
    if tensor.dtype in (torch.float32, torch.int32):
        values: np.ndarray[Any, Any] = tensor.detach().numpy()
        return values
    raise TypeError(f"the kernels take bf16, fp32 and int32, not {tensor.dtype}")


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(_context: Any, _bits: Any) -> Any:
    """uint32 -> the fp32 of these bits."""
    return types.float32(types.uint32), lambda _, builder, __, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def bits_of_float(_context: Any, _value: Any) -> Any:
    """fp32 -> its bits as uint32."""
    return types.uint32(types.float32), lambda _, builder, __, values: builder.bitcast(values[0], ir.IntType(32))


def number(x: Any) -> Any:
    """Fp32 value of an array element."""
    raise NotImplementedError("only compiled kernels call this: numba replaces it by its overload")


def stored(value: Any, like: Any) -> Any:
    """Fp32 value as an element of the type of `like`.

    To bf16 it is rounded to nearest, ties to even, and NaN is kept.
    """
    raise NotImplementedError("only compiled kernels call this: numba replaces it by its overload")


@overload(number, inline="always", strict=False)
def _number(x: Any) -> Any:
    if x == types.uint16:
        return lambda x: float_of_bits(np.uint32(x) << _16)
    return lambda x: x


@overload(stored, inline="always", strict=False)
def _stored(value: Any, like: Any) -> Any:
    if like == types.uint16:
        return lambda value, like: rounded(value)
    return lambda value, like: value


@inlined
def rounded(value: Any) -> Any:
    """fp32 -> the bits of the nearest bf16."""
    bits = bits_of_float(value)
    near = (bits + _ROUND + ((bits >> _16) & _LAST)) >> _16
    return np.uint16(near if value == value else _NAN)


@loose
def exponential(x: Any) -> Any:
    """e^x in fp32 within 3 ulp, clamped to -87..88.

    Cephes' expf (Moshier, 1992): e^x = 2^n e^r with |r| <= ln(2) / 2, a polynomial of degree 6 in r.
    """
    kept = _MIN_EXPONENT if x < _MIN_EXPONENT else (_MAX_EXPONENT if x > _MAX_EXPONENT else x)
    turns = np.rint(kept * _LOG2_E)
    r = kept - turns * _LN2_HIGH - turns * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + _ONE
    return p * float_of_bits(np.uint32((np.int32(turns) + _BIAS) << _FRACTION))

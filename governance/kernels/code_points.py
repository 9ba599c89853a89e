"""Code points in UTF-8 bytes, and ends of sentences."""

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from governance.kernels.compiled import inlined

TERMINALS = ".!?։؝؞؟۔܀܁܂߹।॥၊။።፧፨᙮។៕᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹖﹗！．？｡༎༏༐༑།"
"""Unicode's Sentence_Terminal of scripts in use, with the Tibetan shads and less rare forms of the ASCII marks."""
QUOTES = "\"'’”“»«›‹」』｣＂＇"
CLOSERS = QUOTES + ")]}）］｝〉》】〕〗〙〛"


@intrinsic
def byte_at(typingctx, data, place):  # type: ignore[no-untyped-def]
    """`data[place]` (uint8, contiguous) as int64, without negative indexing."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.zext(builder.load(builder.gep(array.data, [arguments[1]])), ir.IntType(64))

    return types.int64(data, types.int64), generate


@inlined
def decode(data, i, end):  # type: ignore[no-untyped-def]
    """Code point at byte `i` and its width; torn bytes count singly."""
    c = byte_at(data, i)
    if c < 0x80:
        return c, 1
    if c < 0xE0 and i + 1 < end:
        return (c & 0x1F) << 6 | (byte_at(data, i + 1) & 0x3F), 2
    if c < 0xF0 and i + 2 < end:
        return (c & 0x0F) << 12 | (byte_at(data, i + 1) & 0x3F) << 6 | (byte_at(data, i + 2) & 0x3F), 3
    if i + 3 < end:
        high = (c & 0x07) << 18 | (byte_at(data, i + 1) & 0x3F) << 12
        point = high | (byte_at(data, i + 2) & 0x3F) << 6 | (byte_at(data, i + 3) & 0x3F)
        return point if point < 0x110000 else 0x10FFFF, 4
    return c, 1

"""Answers of instruction texts, from which a model learns (`data.encode.loss_on`).

    <|im_start|>user
    What is a quine?<|im_end|>
    <|im_start|>assistant
    A program that prints itself.<|im_end|>
    ^                                      ^

Everything between the two marks is predicted, the marker that ends the answer included. After an answer that ends the
document, its line end and the end-of-document token are predicted too: at that token generation stops. The texts are
those of `messages_form = "instructions"` (`chats.py`), where no message can spell a marker, so a prompt cannot pose as
an answer. Answers are found in the bytes that the tokens stand for, so the tokenizer may normalise the text, but not
change its markers or their number. A token belongs to an answer if its first byte does: of a token that begins in the
header and ends in the answer nothing is learned.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.tokens.encoder import Encoder
from governance.errors import ConfigError, PipelineError

Answers = npt.NDArray[np.bool_]
"""[tokens], True where a token is predicted in training."""
ANSWER = re.compile(rb"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)


def answers_of(
    table: pa.Table,
    ids: npt.NDArray[np.integer],
    ends: npt.NDArray[np.int64],
    encoder: Encoder,
    pattern: re.Pattern[bytes],
) -> Answers:
    """Mark the tokens of answers in the documents of a table.

    Their tokens are `ids`, and they end at `ends`. Answers are the first groups of the pattern's matches.

    Raises:
        PipelineError: a document has no answer.
        ConfigError: the tokenizer loses a marker, or makes one.
    """
    from governance.kernels.buffers import text_buffers

    data, offsets = text_buffers(table["text"])
    found = np.zeros(len(ids), dtype=np.bool_)
    for number, (first, last) in enumerate(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)):
        pieces = [encoder.pieces[index] for index in ids[first:last].tolist()]
        text = b"".join(pieces)
        spans = [answer.span(1) for answer in pattern.finditer(text)]
        written = len(pattern.findall(data[offsets[number] : offsets[number + 1]].tobytes()))
        if not written:
            raise PipelineError(
                f"encode: the document {table['id'][number].as_py()} has no answer to learn from. Read its source with "
                f"messages_form = 'instructions', which quarantines such chats, or set data.encode.loss_on = 'all'."
            )
        if len(spans) != written:
            raise ConfigError(
                f"data.encode.loss_on: document {table['id'][number].as_py()} has {written} answers or targets, and "
                f"{len(spans)} after the tokenizer, which changes the markers around them. Take another tokenizer."
            )
        if not text[spans[-1][1] :].strip():
            spans[-1] = (spans[-1][0], len(text) + 1)  # the end-of-document token begins at len(text)
        begins = np.cumsum([0, *map(len, pieces[:-1])])
        for begin, end in spans:
            start, stop = np.searchsorted(begins, (begin, end)).tolist()
            found[first + start : first + stop] = True
    return found

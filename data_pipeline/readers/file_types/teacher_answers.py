r"""Answers of a teacher model as files of JSON Lines.

A line is the answer to one request:

    {"body":"{\"model\":\"teacher-1\",\"choices\":[{\"message\":{\"content\":\"Once ...\"},\"finish_reason\":\"stop\"}],
      \"usage\":{\"prompt_tokens\":12,\"completion_tokens\":90}}","choices":1,"endpoint":"https://host/v1",
      "prompt_sha256":"...64 hex","request":"...64 hex","seeds":["news/a.jsonl#3"],"status":200}

`body` is what the endpoint sent, character by character; `choices` is the number of texts requested; `request` is the
SHA-256 of the request; `seeds` lists the documents or rows that the prompt was made of: one, or several with an equal
prompt. Each choice becomes a record that keeps `teacher` (the model as answered), `seeds`, `prompt_sha256` and
`finish_reason` in its columns. A text that reached its bound has `finish_reason` "length" and counts as truncated.

Faults: `answer_refused` (another status than 200), `answer_not_json`, `answer_malformed` (no list of choices, no
model), `other_model` (a name that the source does not allow), `missing_choices` (fewer than requested; one fault),
`surplus_choice` (each beyond that number), `empty_answer`, `text_not_string`, `lone_surrogate`. Positions are numbers
from 0, faults included.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from data_pipeline.readers.record import Record, RecordFault, encodable, sample
from data_pipeline.readers.sources import SyntheticSource
from data_pipeline.readers.streams import lines
from governance.config import canonical_json

TRUNCATED = "length"
_VERSION_MARKS = ("-", ":", "@", ".")


@dataclass(frozen=True)
class Answer:
    """A line of the file."""

    request: str
    seeds: list[str]
    prompt_sha256: str
    choices: int
    endpoint: str
    status: int
    body: str

    def line(self) -> bytes:
        """The line, with its end."""
        return canonical_json(asdict(self)) + b"\n"


@dataclass(frozen=True)
class Choice:
    """A text of an answer, or its fault."""

    text: str = ""
    finish_reason: str = ""
    fault: str = ""


def parsed(answer: Answer) -> Mapping[str, Any] | str:
    """The answer's object, or its fault."""
    if answer.status != 200:
        return "answer_refused"
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return "answer_not_json"
    whole = isinstance(body, dict) and isinstance(body.get("choices"), list) and isinstance(body.get("model"), str)
    return body if whole else "answer_malformed"


def is_teacher(answered: str, source: SyntheticSource) -> bool:
    """Return whether the teacher may answer under this name."""
    if source.answered_models:
        return any(fnmatchcase(answered, pattern) for pattern in source.answered_models)
    rest = answered.removeprefix(source.model)
    return answered.startswith(source.model) and (not rest or rest.startswith(_VERSION_MARKS))


def choices_of(answer: Answer, source: SyntheticSource) -> Iterator[Choice]:
    """Texts and faults of an answer, in order."""
    body = parsed(answer)
    if isinstance(body, str):
        yield Choice(answer.body, fault=body)
        return
    if not is_teacher(body["model"], source):
        yield Choice(f"{body['model']} answered for {source.model}: {answer.body}", fault="other_model")
        return
    for number, choice in enumerate(body["choices"]):
        yield _choice(choice, surplus=number >= answer.choices)
    if len(body["choices"]) < answer.choices:
        yield Choice(f"{len(body['choices'])} of {answer.choices}: {answer.body}", fault="missing_choices")


def _choice(choice: Any, *, surplus: bool) -> Choice:
    values = choice if isinstance(choice, dict) else {}
    message = values.get("message")
    text = message.get("content") if isinstance(message, dict) else values.get("text")
    reason = values.get("finish_reason")
    if not isinstance(text, str):
        return Choice(json.dumps(choice), fault="text_not_string")
    fault = "surplus_choice" if surplus else "" if text.strip() else "empty_answer"
    if not fault and encodable(text) != text:
        fault = "lone_surrogate"
    return Choice(encodable(text), reason if isinstance(reason, str) else "", fault)


def tokens_of(answer: Answer) -> tuple[int, int] | None:
    """Tokens of prompt and answer as stated; None without figures."""
    body = parsed(answer)
    usage = body.get("usage") if isinstance(body, Mapping) else None
    given = usage if isinstance(usage, dict) else {}
    used, written = given.get("prompt_tokens"), given.get("completion_tokens")
    if isinstance(used, int) and isinstance(written, int) and min(used, written) >= 0 and max(used, written) < 1 << 40:
        return used, written
    return None


def read_answers(pieces: Iterable[bytes], file: str, source: SyntheticSource) -> Iterator[Record | RecordFault]:
    """Records and faults of a file of answers, in order."""
    position = 0
    for data in lines(pieces):
        answer = Answer(**json.loads(data))
        body = parsed(answer)
        for choice in choices_of(answer, source):
            if choice.fault:
                yield RecordFault(file, position, choice.fault, sample(choice.text))
            else:
                teacher = body["model"] if isinstance(body, Mapping) else ""
                facts = {
                    "teacher": encodable(teacher),
                    "seeds": answer.seeds,
                    "prompt_sha256": answer.prompt_sha256,
                    "finish_reason": encodable(choice.finish_reason),
                }
                columns = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
                yield Record(choice.text, file, position, columns=columns, truncated=choice.finish_reason == TRUNCATED)
            position += 1

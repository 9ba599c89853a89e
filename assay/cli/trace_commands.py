"""Handler of `assay trace-text`."""

from __future__ import annotations

import sys
from dataclasses import asdict

from assay.cli.output import say
from assay.cli.run_commands import Arguments, keyring_of
from governance.errors import ConfigError
from governance.files import write_text


def trace_text(arguments: Arguments) -> None:
    """Print the verbatim spans of a text, with their documents."""
    from assay.trace_text.trace_page import trace_lines, trace_page
    from assay.trace_text.traced_text import trace_text as trace

    text: str = arguments.text
    if text == "-":
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"standard input is not text in UTF-8 ({error}). Convert it") from error
    keyring, documents = keyring_of(arguments.signing_key), arguments.documents
    traced = trace(text, arguments.checkpoint, arguments.corpus, keyring, arguments.min_characters, documents)
    say("\n".join(trace_lines(traced)), **asdict(traced), covered=traced.covered)
    if arguments.html is not None:
        write_text(arguments.html, trace_page(traced))
        say(f"\n{arguments.html}", page=arguments.html)

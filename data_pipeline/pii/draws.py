"""Draws: numbers, letters and choices that a seed fixes for good."""

from __future__ import annotations

from governance.splitmix64 import INCREMENT, finalise_word


class Draw:
    """A stream of numbers that a seed fixes for good: SplitMix64."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        self._state += int(INCREMENT)
        return finalise_word(self._state) % limit

    def one(self, *choices: str) -> str:
        """A choice, all equally likely."""
        return choices[self.below(len(choices))]

    def text(self, length: int, alphabet: str = "0123456789") -> str:
        """A text of this many letters of the alphabet."""
        return "".join(alphabet[self.below(len(alphabet))] for _ in range(length))

    def filled(self, *patterns: str) -> str:
        """One of the patterns, with a digit for each "#"."""
        return "".join(self.text(1) if letter == "#" else letter for letter in self.one(*patterns))

    def number(self, first: int, last: int, width: int = 2) -> str:
        """A number from `first` to `last`, with leading zeros."""
        return str(first + self.below(last - first + 1)).zfill(width)

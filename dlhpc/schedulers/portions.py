"""Many ids on few command lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def portions(words: Sequence[str], longest: int) -> Iterator[list[str]]:
    """The words in turn, in lists of at most ``longest`` characters, blanks between them included."""
    portion: list[str] = []
    length = 0
    for word in words:
        if portion and length + len(word) > longest:
            yield portion
            portion, length = [], 0
        portion.append(word)
        length += len(word) + 1
    if portion:
        yield portion

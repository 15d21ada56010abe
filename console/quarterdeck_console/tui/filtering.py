"""Pure: what is typed after `/`, as a test of text. Plain is a substring, `!` in front inverts, `~` is fuzzy."""

from __future__ import annotations

from collections.abc import Callable


def matcher(typed: str) -> Callable[[str], bool]:
    """A test whether a text is wanted; everything is when nothing was typed. Case does not matter."""
    wanted = typed.strip().casefold()
    if wanted.startswith("!"):
        inner = matcher(wanted[1:])
        return (lambda text: not inner(text)) if wanted[1:].strip() else _anything
    if wanted.startswith("~"):
        letters = wanted[1:].replace(" ", "")
        return lambda text: fuzzy(letters, text.casefold())
    words = wanted.split()
    if not words:
        return _anything
    return lambda text: all(word in folded for folded in (text.casefold(),) for word in words)


def fuzzy(letters: str, text: str) -> bool:
    """Whether the letters come in this order in the text."""
    place = -1
    return all((place := text.find(letter, place + 1)) >= 0 for letter in letters)


def _anything(_text: str) -> bool:
    return True

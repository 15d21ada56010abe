"""Pure: where log lines come from, and the shortest prefix that tells the sources of one view apart."""

from __future__ import annotations

from typing import NamedTuple

from quarterdeck_console.clean import clean_line

COLOURS = 6


class Source(NamedTuple):
    """One replica of one revision of one deployment on one host."""

    host: str
    name: str
    revision: int
    replica: str


class Sources:
    """Every source seen so far, by its place. `changed` says whether prefixes are other than a moment ago."""

    def __init__(self, hosts: int = 1, names: int = 1) -> None:
        self._hosts, self._names = hosts, names
        self._places: dict[Source, int] = {}
        self._labels: list[str] = []
        self._colours: list[int] = []

    def __len__(self) -> int:
        return len(self._places)

    def place(self, source: Source) -> int:
        """The place of a source, a new one where it was not seen before; call `relabel` then."""
        return self._places.setdefault(source, len(self._places))

    def clear(self) -> None:
        """Forget them all."""
        self._places.clear()
        self._labels.clear()
        self._colours.clear()

    @property
    def stale(self) -> bool:
        """Whether there are sources without a prefix."""
        return len(self._labels) != len(self._places)

    def relabel(self, widest: int) -> bool:
        """Name every source by what differs among them, in at most so many columns; whether any prefix has changed."""
        before = self._labels
        revisions: dict[tuple[str, str], set[int]] = {}
        replicas: dict[tuple[str, str, int], set[str]] = {}
        for each in self._places:
            revisions.setdefault(each[:2], set()).add(each.revision)
            replicas.setdefault(each[:3], set()).add(each.replica)
        texts = []
        for each in self._places:
            own = f"r{each.revision}" if len(revisions[each[:2]]) > 1 else ""
            if len(replicas[each[:3]]) > 1:
                own += ("/" if own else "") + _short(each)
            words = (each.host if self._hosts > 1 else "", each.name if self._names > 1 else "", own)
            texts.append(_cut(clean_line(" ".join(word for word in words if word)), widest))
        width = max((len(text) for text in texts), default=0)
        self._labels = [text.ljust(width) + " " if width else "" for text in texts]
        order = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self._colours = [order[text] % COLOURS for text in texts]
        return self._labels[: len(before)] != before

    def label(self, place: int | None) -> str:
        """The prefix of a line, padded to the width of all; empty where there is nothing to tell apart."""
        return self._labels[place] if place is not None and place < len(self._labels) else ""

    def colour(self, place: int | None) -> int:
        """Which of `COLOURS` colours it has."""
        return self._colours[place] if place is not None and place < len(self._colours) else 0


def _cut(text: str, widest: int) -> str:
    """A prefix that is too wide keeps its beginning and its end."""
    end = widest // 3
    return text if len(text) <= widest else f"{text[: widest - end - 1]}…{text[-end:]}"


def _short(source: Source) -> str:
    """A replica's id without what the line says anyway."""
    own = source.replica.removeprefix(f"{source.name}-").removeprefix(f"{source.revision}-")
    return own if len(own) <= 8 else own[-6:]

"""When the console looks for unreachable cycles: while keys rest, and not under them."""

from __future__ import annotations

from quarterdeck_console.tui.garbage import OFTEN, QUIET, SELDOM, Garbage


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _garbage() -> tuple[Garbage, _Clock, list[float]]:
    clock, looks = _Clock(), list[float]()
    return Garbage(clock, lambda: looks.append(clock.now)), clock, looks


def test_it_is_looked_for_when_keys_rest() -> None:
    garbage, clock, looks = _garbage()
    clock.now = OFTEN - 0.1
    assert not garbage.turn()
    clock.now = OFTEN
    assert garbage.turn()
    assert looks == [OFTEN]


def test_a_key_puts_it_off() -> None:
    garbage, clock, looks = _garbage()
    clock.now = OFTEN
    garbage.touched()
    assert not garbage.turn()
    clock.now = OFTEN + QUIET
    assert garbage.turn()
    assert len(looks) == 1


def test_whoever_never_rests_waits_for_it_once_in_a_while() -> None:
    garbage, clock, looks = _garbage()
    for _ in range(int(SELDOM * 2)):
        clock.now += 1.0
        garbage.touched()
        garbage.turn()
    assert looks == [SELDOM, SELDOM * 2]

"""Totals of a sliding window against a plain list of everything that was added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dspy_observe.serving.windows import SlidingTotals

WINDOW_S, SLOT_S = 120.0, 10.0
KEYS = st.sampled_from("abcdefgh")
STEPS = st.lists(st.tuples(KEYS, st.integers(0, 100), st.floats(0, 60)), max_size=60)


class Book:
    """Everything that was added, with the slot it was added in."""

    def __init__(self, steps: list[tuple[str, int, float]], places: int) -> None:
        self.totals = SlidingTotals(WINDOW_S, places)
        self.now = 1_000.0
        self.added: list[tuple[str, int, int]] = []
        for key, amount, pause in steps:
            self.now += pause
            self.totals.add(key, amount, self.now)
            self.added.append((key, amount, int(self.now // SLOT_S)))

    def truth(self, key: str, now: float) -> int:
        """What lies in the twelve newest slots."""
        oldest = int(now // SLOT_S) - 12
        return sum(amount for one, amount, slot in self.added if one == key and slot > oldest)


@given(STEPS, st.floats(0, 300))
def test_totals_are_exact_while_there_is_room(steps: list[tuple[str, int, float]], later: float) -> None:
    """As many places as keys: each total, the order and the largest are those of the list, now and later."""
    book = Book(steps, places=8)
    for now in (book.now, book.now + later):
        truth = {key: book.truth(key, now) for key in "abcdefgh"}
        assert {key: book.totals.total(key, now) for key in truth} == truth
        assert book.totals.most(now) == max(truth.values())
        assert dict(book.totals.top(8, now)) == {key: total for key, total in truth.items() if total}
        assert book.totals.floor == 0


@given(STEPS, st.integers(1, 7))
def test_totals_are_never_too_high_and_too_low_by_the_floor_at_most(
    steps: list[tuple[str, int, float]], places: int
) -> None:
    """With fewer places than keys memory stays bounded, and the error is what the sketch says."""
    book = Book(steps, places)
    assert len(book.totals) <= places
    for key in "abcdefgh":
        truth, total = book.truth(key, book.now), book.totals.total(key, book.now)
        assert truth - book.totals.floor <= total <= truth


@given(st.lists(st.tuples(KEYS, st.integers(1, 100)), min_size=1, max_size=80), st.integers(1, 7))
def test_a_heavy_key_is_always_among_those_kept(steps: list[tuple[str, int]], places: int) -> None:
    """Whoever has more than one in ``places`` of the whole is remembered, however many light ones pass."""
    book = Book([(key, amount, 0.0) for key, amount in steps], places)
    whole = sum(amount for _, amount in steps)
    for key in "abcdefgh":
        if book.truth(key, book.now) > whole / places:
            assert book.totals.total(key, book.now) > 0


@given(STEPS, KEYS, st.integers(1, 400))
def test_the_time_until_there_is_room_again_is_exact(steps: list[tuple[str, int, float]], key: str, limit: int) -> None:
    """Just before it the total still reaches the limit, from then on it does not."""
    book = Book(steps, places=8)
    wait_s = book.totals.seconds_until_below(key, limit, book.now)
    if book.truth(key, book.now) < limit:
        assert wait_s == 0
        return
    assert 0 < wait_s <= WINDOW_S
    assert book.truth(key, book.now + wait_s - 0.001) >= limit
    assert book.truth(key, book.now + wait_s + 0.001) < limit

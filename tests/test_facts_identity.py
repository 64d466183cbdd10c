"""Values are attached to objects, not to equal objects, and keep nothing alive."""

from __future__ import annotations

import gc
import threading
import weakref

import dspy

from dspy_observe.facts.identity import WeakIdentityMap


class Unhashable:
    """A user's class that equals everything and hashes to nothing."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def test_equal_objects_are_told_apart() -> None:
    """Two predictions with the same text are two answers."""
    first, second = dspy.Prediction(answer="42"), dspy.Prediction(answer="42")
    known: WeakIdentityMap[str] = WeakIdentityMap()
    assert known.set(first, "first")
    assert known.get(second) is None
    assert known.set(second, "second")
    assert (known.get(first), known.get(second)) == ("first", "second")


def test_objects_without_hash_are_held_too() -> None:
    """And one that equals everything is found as itself only."""
    one, two = Unhashable(), Unhashable()
    known: WeakIdentityMap[int] = WeakIdentityMap()
    known.set(one, 1)
    assert known.get(one) == 1
    assert known.get(two) is None


def test_what_cannot_be_held_weakly_is_refused() -> None:
    """Strings, numbers and tuples are shared, so a value attached to one would belong to all."""
    known: WeakIdentityMap[int] = WeakIdentityMap()
    for value in ("text", 42, (1, 2), None):
        assert known.set(value, 1) is False
        assert known.get(value) is None
    assert len(known) == 0


def test_an_entry_goes_with_its_object() -> None:
    """The map keeps nothing alive and holds no entry of a dead object."""
    known: WeakIdentityMap[int] = WeakIdentityMap()
    module = Unhashable()
    ghost = weakref.ref(module)
    known.set(module, 1)
    del module
    gc.collect()
    assert ghost() is None
    assert len(known) == 0


def test_a_new_object_at_an_old_address_inherits_nothing() -> None:
    """Python reuses addresses at once; ten thousand short-lived objects never see each other's values."""
    known: WeakIdentityMap[int] = WeakIdentityMap()
    seen = set()
    for number in range(10_000):
        thing = Unhashable()
        seen.add(id(thing))
        assert known.get(thing) is None
        known.set(thing, number)
        assert known.get(thing) == number
        del thing
    assert len(seen) < 10_000, "no address was reused, the test proves nothing"
    assert len(known) == 0


def test_setting_again_replaces() -> None:
    """The last tag counts, and the map does not grow."""
    known: WeakIdentityMap[int] = WeakIdentityMap()
    thing = Unhashable()
    known.set(thing, 1)
    known.set(thing, 2)
    gc.collect()
    assert known.get(thing) == 2
    assert len(known) == 1


def test_threads_do_not_disturb_each_other() -> None:
    """Entries come and go in four threads at once; each finds its own."""
    known: WeakIdentityMap[int] = WeakIdentityMap()
    wrong: list[int] = []

    def work(base: int) -> None:
        kept = []
        for number in range(2_000):
            thing = Unhashable()
            known.set(thing, base + number)
            if number % 3 == 0:
                kept.append((thing, base + number))
        wrong.extend(value for thing, value in kept if known.get(thing) != value)

    threads = [threading.Thread(target=work, args=(base,)) for base in (0, 10_000, 20_000, 30_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert len(known) == 0

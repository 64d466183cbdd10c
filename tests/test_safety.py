"""Errors of our own are swallowed, counted and logged once a minute; strict mode raises them."""

from __future__ import annotations

import asyncio
import logging
import uuid
import weakref
from collections.abc import Iterator

import pytest

from dspy_observe import safety


@pytest.fixture
def site() -> str:
    """A site that no other test has used."""
    return f"test.{uuid.uuid4().hex}"


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Swallow as in production."""
    monkeypatch.delenv("DSPY_OBSERVE_STRICT", raising=False)


@pytest.fixture
def heard() -> Iterator[list[tuple[str, int]]]:
    """What listeners are told from now on."""
    told: list[tuple[str, int]] = []
    stop = safety.on_error(lambda site, count: told.append((site, count)))
    told.clear()
    yield told
    stop()


@pytest.mark.usefixtures("lenient")
def test_an_exception_is_swallowed_counted_and_told(site: str, heard: list[tuple[str, int]]) -> None:
    """The block ends early, the program goes on, and the count says so."""
    after = False
    with safety.guard(site):
        raise ValueError("boom")
    after = True
    assert after
    assert safety.counts()[site] == 1
    assert heard == [(site, 1)]


@pytest.mark.usefixtures("lenient")
def test_a_block_without_error_counts_nothing(site: str, heard: list[tuple[str, int]]) -> None:
    """A guard is silent as long as all goes well."""
    with safety.guard(site):
        pass
    assert site not in safety.counts()
    assert heard == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.usefixtures("lenient")
def test_interruptions_pass_through_uncounted(site: str, stop: type[BaseException]) -> None:
    """They belong to the program."""
    with pytest.raises(stop), safety.guard(site):
        raise stop
    assert site not in safety.counts()


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_strict_mode_raises_and_still_counts(monkeypatch: pytest.MonkeyPatch, site: str, value: str) -> None:
    """Test suites see every fault, with its own type and text."""
    monkeypatch.setenv("DSPY_OBSERVE_STRICT", value)
    with pytest.raises(ZeroDivisionError), safety.guard(site):
        _ = 1 / 0
    assert safety.counts()[site] == 1


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_other_values_leave_strict_mode_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Only 1 and true switch it on, and the switch is read each time."""
    monkeypatch.setenv("DSPY_OBSERVE_STRICT", value)
    assert not safety.strict()


@pytest.mark.usefixtures("lenient")
def test_one_line_a_minute_for_each_site(
    site: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault on every call must not flood the log; the next minute it is told again."""
    now = 1_000.0
    monkeypatch.setattr("dspy_observe.safety.time.monotonic", lambda: now)
    guard, other = safety.guard(site), safety.guard(site + ".other")
    with caplog.at_level(logging.WARNING, "dspy_observe"):
        for _ in range(5):
            with guard:
                raise ValueError
        with other:
            raise ValueError
        assert [site in message for message in caplog.messages] == [True, True]
        now += 59.9
        with guard:
            raise ValueError
        assert len(caplog.records) == 2
        now += 0.2
        with guard:
            raise ValueError
        assert len(caplog.records) == 3
    assert safety.counts()[site] == 7


@pytest.mark.usefixtures("lenient")
def test_the_log_line_names_type_and_place_and_never_the_text(site: str, caplog: pytest.LogCaptureFixture) -> None:
    """The text of an error may quote a prompt or a key."""
    with caplog.at_level(logging.WARNING, "dspy_observe"), safety.guard(site):
        raise LookupError("sk-secret-key of alice@example.com")
    (message,) = caplog.messages
    assert "LookupError" in message
    assert "test_safety.py:" in message
    assert site in message
    assert "alice" not in caplog.text
    assert "sk-secret" not in caplog.text


@pytest.mark.usefixtures("lenient")
def test_an_error_without_traceback_is_logged_too(site: str, caplog: pytest.LogCaptureFixture) -> None:
    """A queue that is full raises nothing of its own."""
    with caplog.at_level(logging.WARNING, "dspy_observe"):
        safety.swallowed(site, ValueError(), count=32)
    assert "an unknown place" in caplog.text
    assert safety.counts()[site] == 32


@pytest.mark.usefixtures("lenient")
def test_a_late_listener_hears_of_earlier_errors_and_a_stopped_one_of_none(site: str) -> None:
    """A counter made after the first fault starts with the right value."""
    safety.swallowed(site, ValueError(), count=3)
    told: dict[str, int] = {}

    def listen(name: str, count: int) -> None:
        told[name] = told.get(name, 0) + count

    stop = safety.on_error(listen)
    assert told[site] == 3
    safety.swallowed(site, ValueError())
    assert told[site] == 4
    stop()
    stop()
    safety.swallowed(site, ValueError())
    assert told[site] == 4
    assert safety.counts()[site] == 5


@pytest.mark.usefixtures("lenient")
def test_a_method_that_listens_does_not_keep_its_object_alive(site: str) -> None:
    """It is told as long as the object lives, and what is left of it goes with the next listener."""

    class Counter:
        def __init__(self) -> None:
            self.told = 0

        def listen(self, _: str, count: int) -> None:
            self.told += count

    counter = Counter()
    safety.on_error(counter.listen)
    before = counter.told
    safety.swallowed(site, ValueError())
    assert counter.told == before + 1
    known = len(safety._listeners)
    gone = weakref.ref(counter)
    del counter
    assert gone() is None
    safety.swallowed(site, ValueError())
    safety.on_error(lambda *_: None)()
    assert len(safety._listeners) < known


def test_counts_are_a_copy(site: str) -> None:
    """Whoever reads the counts cannot change them."""
    safety.counts()[site] = 99
    assert site not in safety.counts()

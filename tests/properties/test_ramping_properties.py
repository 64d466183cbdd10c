"""A rollout's rules, for any state of things."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dspy_observe.serving.ramping import Known, next_move
from dspy_observe.serving.splitting import Draw
from dspy_observe.serving.tallying import Tally

VERDICTS = ("ok", "suspect", "regressed", "insufficient_data", "global_cause", "anything")
STATES = st.builds(
    Known,
    deployed_hash=st.sampled_from(["base", "base", "other", "candidate"]),
    base_hash=st.just("base"),
    candidate_hash=st.just("candidate"),
    quarantined=st.sampled_from([None, None, None, "", "bad"]),
    age_s=st.floats(0, 100),
    min_age_s=st.floats(0, 100),
    calls=st.integers(0, 100),
    min_calls=st.integers(0, 100),
    mismatch=st.sampled_from([None, None, "13/87"]),
    frozen=st.sampled_from([None, None, None, "incident 7"]),
)


@given(STATES, st.sampled_from(VERDICTS))
def test_a_step_is_taken_only_on_ok_with_enough_of_everything(known: Known, verdict: str) -> None:
    """Never on another verdict, before its time, with too few calls, a wrong split, another base, or while frozen."""
    move = next_move(known, lambda: verdict)
    assert move.reason
    due = (
        verdict == "ok" and known.age_s >= known.min_age_s and known.calls >= known.min_calls
        and known.mismatch is None and known.quarantined is None and known.deployed_hash == known.base_hash
        and known.frozen is None
    )  # fmt: skip
    assert (move.act == "advance") == due


@given(STATES, st.sampled_from(VERDICTS))
def test_a_bad_candidate_falls_at_once(known: Known, verdict: str) -> None:
    """However young the step is, however few calls there were, and frozen or not."""
    move = next_move(known, lambda: verdict)
    if known.quarantined is not None or (verdict == "regressed" and known.deployed_hash == known.base_hash):
        assert move.act == "fall"
    elif verdict != "regressed":
        assert move.act != "fall"


@given(STATES)
def test_without_a_judge_people_take_the_steps(known: Known) -> None:
    """Nothing advances by itself."""
    assert next_move(known, None).act in ("wait", "fall", "rebase")


@given(st.lists(st.tuples(st.integers(0, 5_000), st.sampled_from(["stable", "canary"])), max_size=6_000))
def test_a_tally_counts_calls_and_samples_keys(came: list[tuple[int, str]]) -> None:
    """Every call counts; of the keys the two thousand with the smallest marks are kept, each once."""
    tally = Tally()
    role_of: dict[str, str] = {}
    for key, role in came:
        mark = f"{key:08x}"
        tally.add(Draw(0, mark, sticky=True), role, 1)  # type: ignore[arg-type]
        role_of.setdefault(mark, role)
    generation, calls, sampled = tally.take()
    assert generation == (1 if came else 0)
    assert sum(calls.values()) == len(came)
    kept = {text[at : at + 8]: role for role, text in sampled.items() for at in range(0, len(text), 8)}
    assert sorted(kept) == sorted(role_of)[:2_000]
    assert tally.take()[1] == {}

"""Options of dashboards, rules and alerts: checked, explained, read from and written to TOML."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_observe.errors import ConfigurationError
from dspy_observe.mixin.options import BurnWindow, DashboardOptions, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.25, "250ms"), (1, "1s"), (90, "90s"), (300, "5m"), (3600, "1h"), (86_400, "1d"), (604_800, "1w")],
)
def test_seconds_become_prometheus_durations(seconds: float, text: str) -> None:
    """In the largest unit that needs no fraction."""
    assert duration(seconds) == text


@given(st.integers(min_value=1, max_value=10**9))
def test_a_duration_keeps_every_millisecond(milliseconds: int) -> None:
    """Read back, it is as long as before."""
    text = duration(milliseconds / 1000)
    unit = next(unit for unit in ("ms", "s", "m", "h", "d", "w") if text.endswith(unit))
    sizes = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
    assert int(text.removesuffix(unit)) * sizes[unit] == milliseconds


@pytest.mark.parametrize(
    "o", [DashboardOptions(), DashboardOptions.fast(), DashboardOptions.fast(job="x", selector='a="b"')]
)
def test_options_survive_their_own_file(o: DashboardOptions) -> None:
    """Written as TOML and read back they are the same, budgets by program included."""
    assert DashboardOptions.from_toml(o.to_toml()) == o
    budgets = DashboardOptions(daily_budgets_usd={"qa": 5.0, "a b": 0.5}, burn_windows=(BurnWindow(60, 6, 2.0, 1),))
    assert DashboardOptions.from_toml(budgets.to_toml()) == budgets


def test_every_option_says_its_unit_and_reason() -> None:
    """In the file that a team edits, above the value."""
    text = DashboardOptions().to_toml()
    for each in fields(DashboardOptions):
        assert each.metadata["unit"]
        assert len(each.metadata["reason"]) >= 8, each.name
        assert each.metadata["reason"] in text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"error_limit": 5}, "error_limit"),
        ({"error_limit": float("nan")}, "error_limit"),
        ({"minimum_calls": 0}, "minimum_calls"),
        ({"minimum_calls": True}, "minimum_calls"),
        ({"scrape_interval_s": "15s"}, "scrape_interval_s"),
        ({"scrape_interval_s": 200.0}, "regression_window_s"),
        ({"selector": "cluster=eu"}, "selector"),
        ({"selector": 'a="b"} or vector(1) #'}, "selector"),
        ({"job": ""}, "job"),
        ({"receiver_target": 'x"y'}, "receiver_target"),
        ({"latency_objective_s": 7.0}, "latency_objective_s"),
        ({"success_objective": 1.0}, "success_objective"),
        ({"burn_windows": ()}, "burn_windows"),
        ({"burn_windows": (BurnWindow(60, 600, 1, 0),)}, "burn_windows"),
        ({"rollback_signals": ("errors", "mood")}, "rollback_signals"),
        ({"daily_budgets_usd": {"qa": -1}}, "daily_budgets_usd"),
        ({"baseline_window_s": 300.0}, "baseline_window_s"),
        ({"cost_factor": 0.5}, "cost_factor"),
    ],
)
def test_an_option_that_cannot_work_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    """With a way to mend it."""
    with pytest.raises(ConfigurationError) as caught:
        DashboardOptions(**changes)  # type: ignore[arg-type]
    assert caught.value.field == f"DashboardOptions.{field}"
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("error_limit = ", "options"),
        ("eror_limit = 0.1", "DashboardOptions.eror_limit"),
        ('minimum_calls = "50"', "DashboardOptions.minimum_calls"),
        ("minimum_calls = 5.5", "DashboardOptions.minimum_calls"),
        ("job = 5", "DashboardOptions.job"),
        ('preset = "slow"', "DashboardOptions.preset"),
        ("targets = 5", "DashboardOptions.targets"),
        ("daily_budgets_usd = 5", "DashboardOptions.daily_budgets_usd"),
        ("[[burn_windows]]\nlong = 5", "DashboardOptions.burn_windows"),
    ],
)
def test_a_file_that_cannot_work_is_refused_by_name(text: str, field: str) -> None:
    """Also names that do not exist and values of another type."""
    with pytest.raises(ConfigurationError) as caught:
        DashboardOptions.from_toml(text)
    assert caught.value.field == field


def test_a_file_may_start_from_the_fast_preset() -> None:
    """And change what it likes."""
    o = DashboardOptions.from_toml('preset = "fast"\nminimum_calls = 7\n')
    assert o == DashboardOptions.fast(minimum_calls=7)
    assert o.scrape_interval_s == 1.0

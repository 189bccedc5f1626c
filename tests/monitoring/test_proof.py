"""The proof's own judgement: what finds nothing is named, and so is an exception that is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from llava_monitoring.reading import Asked
from tests.monitoring.formats import round_step, write_name, write_value
from tests.monitoring.prometheus import Prometheus, Series, Span
from tests.monitoring.proof import Missing, find_faults

SPAN = Span(start=0, end=600, step_s=5)
LOSS = Asked(where="Run: panel 'Loss', A", expression='llava_run_loss{name="$run"}[$__range]')
NAMES = Asked(where="Run: variable 'run'", expression="llava_run_phase", label="name")
NEVER = Missing("panel 'Loss'", "nothing is learned")


@dataclass(frozen=True)
class Only(Prometheus):
    """Knows one query, and one label's values."""

    known: tuple[str, ...] = ()
    value: float = 1

    def query_range(self, expression: str, span: Span) -> list[Series]:
        return [Series(labels={}, points=[(0, self.value)])] if expression in self.known else []

    def label_values(self, selector: str, label: str, span: Span) -> list[str]:
        return ["x"] if f"{selector} {label}" in self.known else []


def faults(queries: Sequence[Asked], exceptions: Sequence[Missing], *known: str) -> list[str]:
    choices = [{"run": "a"}, {"run": "b"}]
    return find_faults(Only("", known), queries, SPAN, choices, exceptions)


def test_a_query_that_finds_something_for_one_of_the_runs_is_fine() -> None:
    assert faults([LOSS, NAMES], [], 'llava_run_loss{name="b"}[600s]', "llava_run_phase name") == []


def test_a_query_that_finds_nothing_is_named_with_its_panel() -> None:
    found = faults([LOSS, NAMES], [])
    assert "panel 'Loss', A finds nothing: llava_run_loss" in found[0]
    assert "variable 'run' finds nothing" in found[1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_series_without_a_number_is_nothing(value: float) -> None:
    """The median of a histogram that was never added to is NaN, and its panel is empty."""
    prometheus = Only("", ('llava_run_loss{name="a"}[600s]',), value)
    [fault] = find_faults(prometheus, [LOSS], SPAN, [{"run": "a"}], [])
    assert "panel 'Loss', A finds nothing" in fault


def test_an_exception_holds_as_long_as_nothing_is_found() -> None:
    assert faults([LOSS], [NEVER]) == []
    [fault] = faults([LOSS], [NEVER], 'llava_run_loss{name="a"}[600s]')
    assert "finds something: it is no exception any more (nothing is learned)" in fault


def test_an_exception_about_no_query_is_named() -> None:
    assert faults([NAMES], [NEVER], "llava_run_phase name") == ["exception \"panel 'Loss'\" is about no query"]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "s", "0 s"), (0.0042, "s", "4.2 ms"), (5400, "s", "1.5 h"), (3 * 2**30, "bytes", "3 GiB"),
        (0.125, "percentunit", "12.5%"), (12_345, "short", "12.3K"), (0.5, "reqps", "0.5 req/s"),
        (float("nan"), "s", "-"),
        (1.23456, "none", "1.235"), (61, "celsius", "61 °C"), (588.4, "watt", "588 W"), (97, "percent", "97%"),
    ],
)  # fmt: skip
def test_values_are_written_with_their_units(value: float, unit: str, text: str) -> None:
    assert write_value(value, unit) == text


@pytest.mark.parametrize(
    ("step", "unit", "rounded"),
    [(0.3, "short", 0.5), (7, "none", 10), (70, "s", 120), (100_000, "s", 172_800), (3e9, "bytes", 2**32)],
)
def test_ticks_of_axes_read_well(step: float, unit: str, rounded: float) -> None:
    assert round_step(step, unit) == rounded


def test_a_unit_that_nobody_writes_is_named() -> None:
    with pytest.raises(ValueError, match="'furlong'"):
        write_value(1, "furlong")


def test_names_of_series_are_made_of_their_labels() -> None:
    assert write_name("{{a}}: {{ b }}", {"a": "x"}) == "x:"
    assert write_name("__auto", {"__name__": "up", "job": "x"}) == "x"

"""Queries are refused before they are shipped, by what is wrong with them."""

import pytest

from llava_monitoring.promql import BUILT_IN, QueryError, check_query, expand, metrics_of, split_label_values


@pytest.mark.parametrize(
    "query",
    [
        'sum by (namespace) (llava_run_phase{phase="Running"} == 1)',
        "histogram_quantile(0.99, sum by (le) (rate(llava_operator_pass_duration_seconds_bucket[5m])))",
        "rate(llava_operator_stage_duration_seconds_count[5m])",
        "llava_run_step * on (namespace, name) group_left (team) llava_run_info",
        'kube_pod_container_resource_limits{pod="x",resource="memory"}',
        "up == 0",
    ],
)
def test_what_exists_may_be_asked_for(query: str) -> None:
    check_query(query)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("sum(llava_run_step", "unclosed left parenthesis"),
        ("llava_run_steps_total", "'llava_run_steps_total' is neither in the operator's contract nor listed"),
        ("llava_operator_pass_duration_seconds", "neither in the operator's contract"),
        ('{job="x"}', "None is neither in the operator's contract"),
        ('llava_run_step{step="1"}', "llava_run_step has no label 'step'"),
        ('rate(llava_operator_relists_total{verb="x"}[5m])', "llava_operator_relists_total has no label 'verb'"),
        ("sum by (team) (llava_run_step)", "no metric of this query has the label 'team'"),
        ("llava_run_step / on (nam) llava_run_planned_steps", "has the label 'nam'"),
        ("llava_run_step * on (name) group_left (method) llava_run_step", "has the label 'method'"),
        # It has another name from one version of the exporter to the next.
        ("max by (Hostname, gpu) (DCGM_FI_DEV_GPU_UTIL)", "has the label 'Hostname'"),
        ("rate(llava_run_step[5m])", "rate() of llava_run_step, which is a gauge"),
        ("increase(DCGM_FI_DEV_GPU_UTIL[5m])", "increase() of DCGM_FI_DEV_GPU_UTIL, which is a gauge"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_reason(query: str, why: str) -> None:
    with pytest.raises(QueryError) as caught:
        check_query(query)
    assert why in str(caught.value)
    assert query in str(caught.value)


def test_variables_are_filled_in() -> None:
    values = {"run": "invoices", "runs": "wrong", **BUILT_IN}
    assert expand('a{x="$run",y=~"${run:regex}-.*"}[$__range]', values) == 'a{x="invoices",y=~"invoices-.*"}[1h]'
    # What label_replace calls a group of its pattern.
    assert expand('label_replace(a, "b", "$1", "c", "(.*)")', {}) == 'label_replace(a, "b", "$1", "c", "(.*)")'


def test_a_variable_without_a_value_is_named() -> None:
    with pytest.raises(QueryError, match=r"\$rnu has no value; known are run"):
        expand('a{x="$rnu"}', {"run": "invoices"})


def test_a_variables_query_is_taken_apart() -> None:
    assert split_label_values('label_values(a{b="x, y"}, c)') == ('a{b="x, y"}', "c")
    with pytest.raises(QueryError, match=r"must be label_values\(SELECTOR, LABEL\): label_names\(\)"):
        split_label_values("label_names()")


def test_names_of_all_metrics_are_found() -> None:
    assert metrics_of("sum_over_time(sum(llava_run_gpus)[1h:1m]) / max_over_time(up[5m])") == {"llava_run_gpus", "up"}

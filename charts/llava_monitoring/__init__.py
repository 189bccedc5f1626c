"""What people look at and are woken by: Grafana dashboards and alerts, made from the contract of metrics.

Only their generated files are shipped, with the chart: neither image holds this package, and nothing imports it. Of the
operator it may know `telemetry.contract` alone, so that a dashboard can name nothing that is not promised.
"""

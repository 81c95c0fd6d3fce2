"""Everything generated for the chart and the docs: values schema, tables, rules, dashboards.

Imports configuration, models, hardware, alerts and dashboards.
`python -m qwenfleet.cluster.chart.generate` writes the files; a unit test fails if one of them is
out of date.
"""

"""Recording rules and alerts as code; `rule_file` writes them as YAML for Prometheus.

Imports metric names and labels only. Pure: a wrong rule fails in `promtool` and in tests/watch.
"""

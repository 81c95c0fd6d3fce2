"""Recording rules and alerts as code; `rule_file` writes them as YAML for Prometheus.

Imports metric names and labels only. Pure: `promtool` and tests/watch find a wrong rule.
"""

"""Grafana dashboards as code, rendered to JSON for the chart.

Imports metric names and labels only. Pure; needs grafana-foundation-sdk, a development dependency.
"""

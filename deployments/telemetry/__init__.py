"""Metrics, logs and traces of gateways and engines; the only room that imports OpenTelemetry.

Imports metric names, labels, configuration and the wire. A lost report or span is logged once and
never fails a request.
"""

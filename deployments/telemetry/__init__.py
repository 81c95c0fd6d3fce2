"""Metrics, logs and traces as they are emitted; the only room that imports OpenTelemetry.

Imports metric names, labels and the wire. Loses a report or a span and logs it once; never fails
a request.
"""

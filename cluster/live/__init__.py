"""Live numbers for `top` and `watch`, from metrics addresses or a Prometheus, without Ray.

Imports alerts, configuration and local. Fails with a `MetricsError` that names the address.
"""

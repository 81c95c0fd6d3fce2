"""Live numbers for `top` and `watch`, from metrics addresses and a Prometheus, without Ray.

Imports `local`, metric names and labels. Fails with a `MetricsError` that names the address.
"""

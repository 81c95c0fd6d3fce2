"""Live numbers for `top` and `watch`, from metrics addresses and a Prometheus, without Ray.

May import `alerts`, `config` and `local`. Fails with a `MetricsError` that names the address.
"""

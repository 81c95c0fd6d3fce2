"""Fixtures: the metrics address that tests of `top` and `watch` read."""

from tests.metrics_page import metrics_page, metrics_text

__all__ = ["metrics_page", "metrics_text"]

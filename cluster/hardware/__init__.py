"""Accelerators with the origin of each figure, and the machines of a cluster.

Imports models and configuration. Raises a `PlanError` that names an unknown accelerator.
"""

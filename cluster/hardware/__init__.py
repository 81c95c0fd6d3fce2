"""Accelerators with the origin of each figure, and the machines that a cluster offers.

Imports models and configuration. Fails with a `PlanError` that names the unknown accelerator.
"""

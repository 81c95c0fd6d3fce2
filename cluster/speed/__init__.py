"""Predicted seconds of prefill and decode steps, calibrated on published measurements. Pure.

Imports hardware, models and configuration. Reports how far off its predictions were; too few
points give no error.
"""

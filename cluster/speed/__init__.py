"""Predicted seconds of prefill and decode steps, calibrated on published measurements. Pure.

Imports hardware and models. Reports how far off its predictions were; too few points give no error.
"""

"""A plan as a table, as files, or as one HTML page; the calibration as tables.

Imports the planner and the rooms below it. Shows what the planner decided and decides nothing.
"""

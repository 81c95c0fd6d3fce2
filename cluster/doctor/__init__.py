"""`qwenfleet doctor`: facts about a machine, read by thin readers and judged by pure functions.

Imports every room below it. A fact that cannot be read becomes a note; a judge never raises.
"""

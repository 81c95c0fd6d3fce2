"""`qwenfleet doctor`: thin readers gather facts about a machine, and pure functions judge them.

May import every room below it. A fact that cannot be read becomes a note; a judge never raises.
"""

"""Which layout serves a model on given machines, and why. Pure.

Imports speed, vLLM settings and hardware. Raises `PlanError`s that hold fields; each caller words
them as options, configuration keys or chart values.
"""

"""Choice of the layout that serves a model on given machines, with reasons. Pure.

Imports speed, vLLM settings and hardware. Raises `PlanError`s that hold fields; each caller phrases
them in terms of options, configuration keys or chart values.
"""

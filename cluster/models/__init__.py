"""Models (geometry, catalog, card) and the sources of their weights.

Imports the ground floor only. Raises a `ModelSourceError`, or a `PlanError` for an unknown name.
"""

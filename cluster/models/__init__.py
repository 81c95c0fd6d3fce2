"""What a model is (geometry, catalog, card) and where its weights come from.

Imports the ground floor only. Fails with a `ModelSourceError`, or a `PlanError` for an unknown
name.
"""

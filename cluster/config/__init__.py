"""The tree of fleet.yaml: types, bounds, loading, and sentences that explain mistakes.

The only room that reads configuration files. Imports the ground floor only. Raises a `ConfigError`
that names the file, line, key and value, and says what to write instead.
"""

"""This machine: its ports, memory and CPU, its processes, and the fleets that run on it.

Imports the ground floor only. Fails with a `MachineError` that names what is missing.
"""

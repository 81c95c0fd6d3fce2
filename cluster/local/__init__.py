"""This machine: its ports, memory and CPU, its processes, and the fleets that run on it.

Imports only the modules directly in `cluster/`. Fails with a `MachineError` that names what is
missing.
"""

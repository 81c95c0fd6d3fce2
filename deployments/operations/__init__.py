"""What an operator does to a fleet: serve, deploy, status, drain, doctor on a cluster.

Imports every room below it. Fails with one sentence and exit status 1.
"""

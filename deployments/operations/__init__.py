"""Commands of an operator: serve, deploy, status, drain, and doctor on a cluster.

Imports every room below it. Fails with one sentence and exit status 1.
"""

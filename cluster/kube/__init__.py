"""The Kubernetes API: the only room that imports `kubernetes`.

Imports hardware, for the names of GPUs. Reads JSON, keeps the few fields that are used, and
judges them with pure functions. Every failure is a `KubernetesError` that names the missing
permission or resource.
"""

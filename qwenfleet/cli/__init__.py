"""The `qwenfleet` command: one file for each subcommand, with its options and what it runs.

May import every folder; nothing imports it. Modules that need Ray, rich or vLLM are imported by the
function that runs, so that `qwenfleet --help` answers at once. A failure is a `FleetError`, which
`__main__.main` prints as one sentence with exit status 1.
"""

"""The `qwenfleet` command: one file for each subcommand, with its options and its action.

May import every folder; nothing imports it. A function imports modules that need Ray, rich or vLLM
when it runs, so that `qwenfleet --help` answers at once. A failure is a `FleetError`, which
`__main__.main` prints as one sentence, with exit status 1.
"""

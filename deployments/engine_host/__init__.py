"""An engine's end of the wire: sessions, attempts, and the health of its core.

Knows neither vLLM nor Ray. Imports the wire, registry records, telemetry and configuration. A dead
core is `CoreDead`; a frozen one is reported to the gateways.
"""

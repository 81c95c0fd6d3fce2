"""Which engine has a request, and how the request moves to another.

Knows neither vLLM nor HTTP nor Ray. Imports the wire, registry records, telemetry, and of ingress
the exchange and its errors. Never raises toward a link; a request that cannot continue ends
through `Recipient.fail`.
"""

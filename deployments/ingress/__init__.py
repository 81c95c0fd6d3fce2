"""HTTP requests, from first byte to last.

Does not depend on vLLM or Ray. Imports telemetry, the wire's engine description and configuration.
Failures end here: a `RequestError` becomes an HTTP status or the last event of a stream.
"""

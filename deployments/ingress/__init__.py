"""One HTTP request, from its first byte to its last.

Knows neither vLLM nor Ray. Imports telemetry. Failures end here: a `RequestError` becomes an HTTP
status or the last event of a stream.
"""

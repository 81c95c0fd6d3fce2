"""The registry of engines and gateways: records, the actor that keeps them, and its client.

Imports telemetry and the wire. Records and messages are versioned msgpack and independent of Ray.
While the registry is unavailable, gateways continue with the engines that they know.
"""

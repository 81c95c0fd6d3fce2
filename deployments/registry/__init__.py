"""Who is there: records, the actor that keeps them, and its client.

Records and the actor's messages are versioned msgpack and know no Ray. If the registry is away,
gateways continue with what they know.
"""

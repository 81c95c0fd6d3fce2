"""Frames, versions and liveness between a gateway and an engine. No policy.

Imports the ground floor only. A peer that sends an invalid frame is a `ProtocolError`.
"""

"""Everything that touches vLLM: its front end, its cores, and the plugin that resumes streams.

The only room that imports vLLM. Imports every room below it. A core that does not start is an
`EngineStartError`, one that dies is `CoreDead`. A port to the next vLLM changes this room and
cluster/vllm_settings; tests/unit/deployments/vllm_adapter/test_surface.py fails if a part of vLLM
that is used here has changed.
"""

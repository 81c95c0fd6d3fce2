"""Everything that touches vLLM: its front end, its cores, and the plugin that resumes streams.

The only room that imports vLLM. Porting to the next vLLM is work here and in
cluster/vllm_settings; tests/unit/deployments/vllm_adapter/test_surface.py fails when a used part
of vLLM changes.
"""

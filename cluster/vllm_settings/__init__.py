"""vLLM's arguments, variables and defaults by name, without importing vLLM.

Imports configuration and models. Unit tests hold every name against the installed vLLM. Porting
to the next vLLM is work here and in deployments/vllm_adapter.
"""

"""vLLM's arguments, variables and defaults by name, without importing vLLM.

Imports configuration, models and hardware. Unit tests check every name against the installed
vLLM. Porting to the next vLLM means work here and in deployments/vllm_adapter.
"""

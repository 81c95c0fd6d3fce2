"""qwenfleet serves the Qwen3-Coder family over a Ray cluster: vLLM's front end, many engines, one
URL."""

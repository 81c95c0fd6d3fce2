"""qwenfleet serves the Qwen3-Coder family over a Ray cluster: vLLM's front end, many engines, one
URL."""

__version__ = "0.1.0"

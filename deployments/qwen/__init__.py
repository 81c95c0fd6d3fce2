"""What Qwen's models write and read: tool calls, fill-in-the-middle prompts. Pure.

Imports nothing of the project. Text of a model never makes it raise: what is not a call stays text.
"""

"""Untracked lists: keeps the garbage collector out of the token ids that vLLM's front end holds.

Each full collection visits every element of every list. A hundred prompts of 100,000 tokens take
100 ms of a gateway's loop each time; the front end wants lists, and holds them to the end.
"""

from __future__ import annotations

import ctypes


def untrack(tokens: list[int]) -> None:
    """Let collections pass over a list of integers, which can be part of no cycle. It is freed like
    any other when its last user lets go."""
    ctypes.pythonapi.PyObject_GC_UnTrack(ctypes.py_object(tokens))

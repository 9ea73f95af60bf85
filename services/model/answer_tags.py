"""The tags that models set around thoughts and calls of tools."""

from __future__ import annotations

THINK = "<think>"
THINK_END = "</think>"
TOOL_CALL = "<tool_call>"
TOOL_CALL_END = "</tool_call>"
TOOL_CALLS = "[TOOL_CALLS]"
CALL_ID = "[CALL_ID]"
ARGS = "[ARGS]"
PYTHON_TAG = "<|python_tag|>"
ALL = (THINK, THINK_END, TOOL_CALL, TOOL_CALL_END, TOOL_CALLS, CALL_ID, ARGS, PYTHON_TAG)

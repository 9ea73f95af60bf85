"""The backend whose layers vLLM computes."""

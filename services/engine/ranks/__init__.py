"""A stage on several ranks: child processes of the engine behind the backend's seam."""

"""What every backend does with a batch, whatever its arithmetic."""

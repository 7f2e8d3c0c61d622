"""Finds the best of the tracked designs. It reads runs and never trains."""

"""Profiles a network and reduces the traces to tables."""

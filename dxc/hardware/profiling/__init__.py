"""Traces of a network, reduced to tables."""

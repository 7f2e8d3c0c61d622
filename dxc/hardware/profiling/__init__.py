"""Reduces traces of a network to tables."""

"""Watersheds that are made: terrain, what a camera sees of it, and the source of chips."""

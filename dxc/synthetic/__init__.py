"""Synthetic watersheds: terrain, how a camera sees it, and the source of chips."""

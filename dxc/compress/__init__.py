"""Smaller networks from trained ones: prune removes channels, quantise computes in 8 bits."""

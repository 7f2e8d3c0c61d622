"""Measures latency and memory in a fresh process, here or over SSH."""

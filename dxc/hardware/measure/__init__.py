"""Latency and memory in a fresh process, here or over SSH."""

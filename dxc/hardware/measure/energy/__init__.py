"""Energy of inference: meters (sources), and what their samples say (protocol)."""

"""Export with what a network needs to be fed."""

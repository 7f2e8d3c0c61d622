"""Which of the tracked designs are worth having; reads runs, never trains."""

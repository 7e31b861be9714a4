"""Looking at demonstrations and finding their faults."""

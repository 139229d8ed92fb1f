"""One end-to-end run a system."""

"""Exported models: what a file says of itself, what runs it, and the gate that it has to pass."""

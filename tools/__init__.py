"""Command lines: parse, call, nothing else. Installed as ``effdense.tools``."""

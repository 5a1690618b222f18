"""What ``python tools/bench.py`` measures: one module a part, each beside its peer."""

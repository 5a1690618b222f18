"""Tensor operations that more than one task needs."""

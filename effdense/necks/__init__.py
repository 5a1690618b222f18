"""Necks: what turns backbone features into a feature pyramid."""

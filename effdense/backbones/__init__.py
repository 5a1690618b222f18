"""EfficientNet backbones: the table of published sizes, the registry, weights."""

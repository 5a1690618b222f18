"""From label maps to numbers, tables and pictures. Nothing here knows a model."""

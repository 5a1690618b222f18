"""From ground truth and detections to numbers, tables and pictures. Nothing here knows a model."""

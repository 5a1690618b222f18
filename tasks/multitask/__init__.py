"""Object detection and semantic segmentation with one backbone."""

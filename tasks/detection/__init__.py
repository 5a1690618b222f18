"""Object detection with EfficientDet."""

"""The terms of the segmentation loss: those that are a mean over pixels, and those that measure regions."""

"""Classification: figures of a classifier, its calibration, and cross-validation."""

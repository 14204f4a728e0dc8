"""Pretrained weights in the formats other programs load."""

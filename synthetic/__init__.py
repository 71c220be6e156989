"""Synthetic pedestrians, which demo.py renders in the layouts of the data sets."""

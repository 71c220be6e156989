"""The data sets: layouts, splits and searches, and the way from an image file to pixels. Imports no torch."""

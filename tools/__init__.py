"""Tools of those who work on this repository, run as `python -m tools.NAME`."""

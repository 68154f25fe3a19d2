"""The commands of `python -m disagg`, by what they are for."""

"""The scheduler's rows: what policies decide, how fast, and whether it was right, on loads fixed before them."""

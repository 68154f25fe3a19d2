"""What one GPU gives: rows in groups, each callable alone, because a minute on a GPU is dear. `suite.py` lists them."""

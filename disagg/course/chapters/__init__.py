"""The exercises of each chapter, a file a notebook."""

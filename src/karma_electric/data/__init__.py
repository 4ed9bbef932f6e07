"""Examples, the corpus, releases."""

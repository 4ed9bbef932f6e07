"""Shipping: GGUF files, Modelfiles, and proof that they are the model they were made from."""

"""Tokenising, QLoRA, merging."""

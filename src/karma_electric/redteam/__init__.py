"""Scenarios, scorers, statistics, and the runner of an arm."""

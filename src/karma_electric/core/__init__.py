"""What everything stands on: errors, messages, recipes, artifacts, progress."""

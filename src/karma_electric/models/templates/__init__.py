"""Training templates: twins of the models' own chat templates, with the assistant's tokens marked."""

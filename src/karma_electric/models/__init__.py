"""Models: names, loading, templates, the layer convention, engines."""

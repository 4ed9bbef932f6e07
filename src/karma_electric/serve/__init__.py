"""A live engine behind HTTP: OpenAI's and Ollama's endpoints, our own few, health and metrics."""

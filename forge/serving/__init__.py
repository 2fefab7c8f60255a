"""Serves a fused model folder: the MLflow pyfunc, its request format, prompts, and the one thread that generates."""

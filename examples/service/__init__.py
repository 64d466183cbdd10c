"""A DSPy program as an HTTP service; ``serve.py`` starts it."""

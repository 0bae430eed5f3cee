"""tunesmith: data into an adapter that ships only on evidence."""

__version__ = "0.1.0"

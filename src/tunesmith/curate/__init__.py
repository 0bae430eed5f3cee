"""Stage 1: a source becomes rows, and rows become splits that are written once."""

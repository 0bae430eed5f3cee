"""Stage 6: files of scores in, a verdict out. Never imports torch."""

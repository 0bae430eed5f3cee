"""Stages 3 and 5: every way to answer, without training and with it, on the same held-out rows."""

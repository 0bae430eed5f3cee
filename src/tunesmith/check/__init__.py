"""Stage 2: every row is rendered as training will render it, and looked at, before anything is trained."""

"""Stages around the gate: merge before it, so that what is judged is what ships; the bundle after it."""

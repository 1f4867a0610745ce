"""Answers that are checked: JSON read from what a model wrote, and judged by the type that the caller wants."""

"""Models in the format of Hugging Face: read, written and converted."""

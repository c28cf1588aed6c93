"""A model's graph in lower precision: made by well-kept libraries, chosen and proved by us."""

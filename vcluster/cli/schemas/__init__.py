"""A JSON Schema for each result of `-o json`. The reference is made from them, and tests validate with them."""

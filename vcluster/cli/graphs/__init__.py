"""A cluster's graph as text and as pictures, each written from its JSON document alone."""

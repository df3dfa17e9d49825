"""The doors to the outside. Each library that reaches it is imported in one module here and its errors end there."""

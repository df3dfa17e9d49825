"""Virtual MPI clusters whose traffic crosses a switch one can study."""

__version__ = "0.1.0"

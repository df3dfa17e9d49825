"""One module or sub-package for each outside library or tool. Its errors are translated there."""

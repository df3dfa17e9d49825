"""One module or sub-package for each outside library or tool. Each translates that library's errors."""

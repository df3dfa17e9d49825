"""Guest images: build, import, check, and transfer to servers."""

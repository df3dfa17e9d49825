"""What commands print: a document for each result, text rendered from the document alone, progress, and hints."""

"""PDF files: their text layer and its paragraphs."""

"""PDF files: their text layer, page by page, and the paragraphs that it becomes."""

"""HTML and SVG: escaping markup, figures, style."""

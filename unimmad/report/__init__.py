"""A report's content, tables, pictures and page."""

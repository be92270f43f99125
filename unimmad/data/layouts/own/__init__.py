"""One's own images: folders in two layouts, and tables that list them."""

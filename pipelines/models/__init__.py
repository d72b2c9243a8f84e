"""Published weights: fetched, converted from `.pth`, kept in the models folder, and listed."""

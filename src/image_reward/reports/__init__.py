"""Documents of tables, plots and pictures, for terminals, pages and programs."""

"""What more training rows would bring: adapters of nested parts of them, side by side on dev."""

"""The decoder that all families share; a family only chooses among its options."""

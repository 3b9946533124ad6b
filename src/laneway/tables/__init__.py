"""Tables whose catalog says which data files they consist of: Delta, Iceberg, Hugging Face, and those of users."""

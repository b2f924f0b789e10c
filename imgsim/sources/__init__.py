"""Where images and files come from: built-in leaves, folders, Parquet, the Hub; and the cache they are kept in."""

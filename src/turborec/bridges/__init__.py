"""What other libraries have saved, read without executing any of it."""

"""What texts and images say of items, as tables of numbers: read, encoded by a kept encoder, cached by content, written."""

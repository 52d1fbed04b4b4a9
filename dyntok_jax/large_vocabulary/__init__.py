"""A vocabulary far larger than the model's: its tokens, its rows and the search among them."""

"""One backend: its phases, and what moves it from one to the next."""

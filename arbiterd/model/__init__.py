"""The nouns: frozen values shared by every room. No behaviour beyond small derived properties."""

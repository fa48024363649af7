"""One file per engine kind, and the table that names them."""

"""The status API and the admin socket."""

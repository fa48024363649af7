"""Keeps HAProxy and the load gate as core wants them."""

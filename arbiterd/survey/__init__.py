"""What is already on this host: units, engines, models, ports. Read only; nothing here changes it."""

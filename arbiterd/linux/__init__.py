"""What the kernel and systemd tell about this host: /proc, cgroups, sockets, containers' ids, units."""

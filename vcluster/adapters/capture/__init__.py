"""What a capture uses outside: the ring of the kernel, libpcap, and the file that it writes."""

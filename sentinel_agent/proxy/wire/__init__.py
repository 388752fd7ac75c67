"""HTTP/1.1 on the wire: bytes in, facts and bytes out. Pure: no sockets, no clock."""

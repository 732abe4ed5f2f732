"""The built-in iSCSI target (RFC 7143): codecs, login and session without I/O; `portal` alone has sockets."""

"""The SCSI target, sans I/O: it takes commands and buffers, calls the backend, and gives status and sense."""

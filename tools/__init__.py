"""What the project needs beside itself."""

"""A file behind a web server."""

from urllib.request import Request, urlopen

from tcmu_core import hookimpl


class Web:
    """The cfgstring is the URL."""

    @hookimpl
    def open(self, device):
        self.url = device.cfgstring
        with self.ask(0, 1) as answer:
            size = int(answer.headers["Content-Range"].partition("/")[2])
        device.size = size // device.block_size * device.block_size
        device.threads = 4

    @hookimpl
    def read(self, offset, buffers):
        with self.ask(offset, sum(map(len, buffers))) as answer:
            for buffer in buffers:
                answer.readinto(buffer)

    def ask(self, offset, length):
        return urlopen(Request(self.url, headers={"Range": f"bytes={offset}-{offset + length - 1}"}))

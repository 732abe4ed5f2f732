"""A disk in memory whose work is done by a thread of its own."""

import queue
import threading
from concurrent.futures import Future

from tcmu_core import hookimpl


class Queued:
    """Each hook puts a job into a queue and returns its Future."""

    @hookimpl
    def open(self, device):
        self.data = bytearray(device.size)
        self.jobs = queue.SimpleQueue()
        self.worker = threading.Thread(target=self.work)
        self.worker.start()

    @hookimpl
    def close(self):
        self.jobs.put(None)
        self.worker.join()

    @hookimpl
    def read(self, offset, buffers):
        return self.later(self.fill, offset, buffers)

    @hookimpl
    def write(self, offset, buffers):
        return self.later(self.keep, offset, buffers)

    def later(self, job, *arguments):
        done = Future()
        self.jobs.put((done, job, arguments))
        return done

    def work(self):
        while (found := self.jobs.get()) is not None:
            done, job, arguments = found
            try:
                job(*arguments)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def fill(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    def keep(self, offset, buffers):
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

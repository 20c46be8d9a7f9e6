"""Refuse every connection that leaves this machine. Python imports this module when its folder is on PYTHONPATH."""

import socket


def _guard(method):
    def connect(self, address, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in (
            "127.0.0.1",
            "localhost",
            "::1",
        ):
            raise OSError(f"The network is closed in tests: {address[0]} refused.")
        return method(self, address, *rest)

    return connect


socket.socket.connect = _guard(socket.socket.connect)
socket.socket.connect_ex = _guard(socket.socket.connect_ex)

"""An object store for tests: moto speaks the protocol of S3 on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BUCKET = "runs"


@contextmanager
def s3() -> Iterator[str]:
    """The URI of a bucket; this process and those that it starts find its server."""
    pytest.importorskip("s3fs", reason="s3fs speaks to object stores")
    moto = pytest.importorskip("moto.server", reason="moto is the object store")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from upath import UPath

        UPath(f"s3://{BUCKET}").fs.mkdir(BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()

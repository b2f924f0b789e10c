"""What the tests of a room share: a store that speaks S3 and fails when it is told to, and a comparison."""

import os
import threading
import time
from collections import Counter

import numpy as np
import pytest
from jobs import PATIENCE, name_of

from imgsim.extras.scale.cluster import TOKEN, cluster
from imgsim.extras.scale.index import ShardedIndex
from imgsim.extras.scale.shards import Shards

FAILURES = {
    "5xx": ("500 Internal Server Error", "InternalError"),
    "full": ("507 Insufficient Storage", "XMinioStorageFull"),
    "gone": ("404 Not Found", "NoSuchKey"),
}


class Store:
    """moto's server behind a gate that counts what passes, and lets some of it fail.

    Attributes:
        requests, bytes: answered so far, by method; and sent.
        fails: a function of method and path that gives "5xx", "full", "slow", "gone" or nothing.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_):
                pass

        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True, request_handler=Quiet)
        self.server.daemon_threads = True
        self.lock, self.fails = threading.Lock(), None
        self.reset()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self):
        self.requests, self.bytes, self.failed = Counter(), 0, Counter()

    def answer(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        how = self.fails and self.fails(method, path)
        with self.lock:
            self.requests[method] += 1
            self.failed[how] += bool(how)
        if how == "slow":
            time.sleep(3)
        if how in FAILURES:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            code, name = FAILURES[how]
            body = f"<?xml version='1.0'?><Error><Code>{name}</Code><Message>{name}</Message></Error>".encode()
            start_response(code, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if method == "HEAD" else body]
        body = b"".join(self.app(environ, start_response))
        with self.lock:
            self.bytes += len(body)
        return [body]


def rows_of(folder):
    """All (table, hash, id) rows that a folder's manifest stands for, in order."""
    tables = Shards.at(folder, "index")
    manifest, rows = tables.manifest(), []
    for file in manifest["files"]:
        if "place" in file:
            part = tables.read(file["name"])
            table = np.full(len(part), file["place"] >> manifest["top"])
            rows.append(np.stack([table, part["hash"].to_numpy(), part["id"].to_numpy()]))
    return np.concatenate(rows, axis=1).astype(np.int64)


@pytest.fixture(scope="session")
def assert_same(clear):
    """A function that asserts: the tables on disk hold the rows of an index in memory, and searches give the same.

    All but ties: shards are hashed one by one, and sums rounded otherwise may turn the sign of what lies on a plane.
    """

    def compare(folder, index, queries):
        table, codes, ids = rows_of(folder)
        np.testing.assert_array_equal(np.lexsort((ids, codes, table)), np.arange(index.num_tables * len(index)))
        place, row = np.lexsort((ids, table)).reshape(index.num_tables, -1), np.argsort(index.ids)
        assert (table[place] == np.arange(index.num_tables)[:, None]).all() and (ids[place] == index.ids[row]).all()
        same = index.lsh.codes[row] == codes[place].T
        assert same[clear(index.projection, index.vectors[row])].all() and same.mean() > 0.999
        sharded = ShardedIndex(folder, probes=index.probes, rerank=index.rerank)
        expected, found = index.search(queries), sharded.search(queries)
        same = expected.ids == found.ids
        np.testing.assert_array_equal(expected.cosines[same], found.cosines[same])
        assert same.mean() > 0.95
        for name in ("candidates_seen", "compared_exactly"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0.01, atol=1)

    return compare


@pytest.fixture(scope="session")
def store():
    """A running store, which all processes that are started find by their environment."""
    for package in ("moto", "s3fs"):
        pytest.importorskip(package, reason="the extra test is not installed")
    store = Store()
    settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{store.server.server_port}", "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield store
        store.fails = None
    store.server.shutdown()
    store.server.server_close()


@pytest.fixture(scope="module")
def ray_here():
    """A local Ray with a GPU that exists in its books only; nothing of it is left at the end."""
    psutil = pytest.importorskip("psutil", reason="the extra notebooks is not installed")
    ray = pytest.importorskip("ray", reason="the extra scale is not installed")
    with cluster(3, num_gpus=1):
        yield ray
        started = [one for one in psutil.Process().children(recursive=True) if "ray" in name_of(one).lower()]
    assert started and not ray.is_initialized() and not psutil.wait_procs(started, timeout=PATIENCE)[1]


@pytest.fixture(scope="module")
def joining(ray_here):
    """The environment of a process that joins this Ray with its token."""
    address = ray_here.get_runtime_context().gcs_address
    return os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
